"""Trains and scores one cell, with the stages and the trainer of every other run.

Everything is drawn from the cell's seed: weights, batches, masks and images. The judge of the
digits' evaluation, which knows the held-out digits only, gives the features.
"""

import io
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model.config import (
    GeneratorConfig,
    ImageRequest,
    SamplingConfig,
    TokenizerConfig,
    VitConfig,
)
from model.generate import generate
from model.generator import Generator
from model.tokenizer import Tokenizer, to_uint8
from tests.ablations.cells import Cell, Outcome, Score
from training import digits_data
from training.digits_data import DigitsData
from training.digits_evaluation import Seen, seen_by
from training.generator_stage import GeneratorLossConfig, GeneratorStage
from training.initialise import initialise_generator, initialise_tokenizer
from training.judge import Judge, train_judge
from training.optimiser import OptimiserConfig
from training.order_annealing import OrderAnnealing
from training.pictures import Pixels
from training.pixel_data import HeldPixels
from training.pretokenize import pretokenize
from training.progress import Progress
from training.run_stage import seeded
from training.sample_metrics import frechet_distance
from training.stage import Stage
from training.tokenizer_loss import TokenizerLossWeights
from training.tokenizer_stage import TokenizerStage, psnr
from training.trainer import Trainer
from training.trainer_config import TrainerConfig

IMAGE_SIZE = 16
CELL_SIZE = 4  # pixels a side
BATCH_SIZE = 250  # of drawing


@dataclass(frozen=True)
class Scale:
    """How much work a cell is."""

    tokenizer_steps: int = 1000
    generator_steps: int = 1200
    images_per_class: int = 60


class Laboratory:
    """The data and the judge, which all cells share; tokenizers, which some do."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        self.data: DigitsData = digits_data.load(IMAGE_SIZE)
        self.judge: Judge = train_judge(self.data.held_out, len(digits_data.NAMES))
        self.real: Seen = seen_by(self.judge, to_uint8(self.data.held_out.pixels).numpy())

    def run(self, cell: Cell) -> Outcome:
        """Train the cell, draw images in all its ways, and compare them with real ones."""
        tokenizer = self._tokenizer(cell)
        rebuilt = tokenizer.decode(tokenizer.encode(self.data.held_out.pixels)).clamp(-1, 1)
        error = (rebuilt - self.data.held_out.pixels).square().mean().item()
        generator, token_nats, train_s = self._generator(cell, tokenizer)
        return Outcome(
            cell=cell,
            num_parameters=sum(p.numel() for p in generator.parameters()),
            train_s=round(train_s, 1),
            token_nats=round(token_nats, 5),
            psnr=round(psnr(error), 4),
            frechet_floor=round(self._frechet(to_uint8(rebuilt).numpy()), 4),
            scores=tuple(self._score(generator, tokenizer, s) for s in cell.samplings()),
        )

    def _tokenizer(self, cell: Cell) -> Tokenizer:
        vit = VitConfig(width=64, depth=2, num_heads=4, mlp_width=256)
        with seeded(cell.seed, "tokenizer"):
            tokenizer = Tokenizer(
                TokenizerConfig(
                    image_size=IMAGE_SIZE,
                    patch_size=CELL_SIZE,
                    bits_per_latent=cell.bits,
                    encoder_kind="vit",
                    encoder=vit,
                    decoder=vit,
                    encoder_table_size=IMAGE_SIZE // CELL_SIZE,
                )
            )
            initialise_tokenizer(tokenizer)
        train, held_out = (HeldPixels(part.pixels) for part in self.data)
        stage = TokenizerStage(tokenizer, train, held_out, TokenizerLossWeights(l2=1.0, l1=0.1))
        config = _training(self.scale.tokenizer_steps, 2e-3, weight_decay=0.0, average_decay=0.995)
        self._fit(stage, config, cell.seed, f"tokenizer-{cell.bits}-{cell.seed}")
        return tokenizer

    def _generator(self, cell: Cell, tokenizer: Tokenizer) -> tuple[Generator, float, float]:
        """Train the cell's generator; return it, what it pays for a held-out token, and how long it
        took."""
        with seeded(cell.seed, "generator"):
            generator = Generator(
                GeneratorConfig(
                    grid_size=IMAGE_SIZE // CELL_SIZE,
                    patch_size=cell.patch,
                    bits_per_latent=cell.bits,
                    width=64,
                    depth=3,
                    num_heads=4,
                    num_classes=len(digits_data.NAMES),
                    class_repeat=2,
                    head=cell.head,
                    head_width=64,
                    head_depth=2 if cell.head == "masked_bit" else 0,
                ),
                dropout=0.1,
            )
            initialise_generator(generator)
        train, held_out = (pretokenize(tokenizer, *part, cell.patch) for part in self.data)
        steps = self.scale.generator_steps
        loss = GeneratorLossConfig(
            order_annealing=OrderAnnealing(start=steps // 3, end=2 * steps // 3),
            mask_distribution=cell.masking,
        )
        stage = GeneratorStage(generator, train, held_out, loss, tokenizer, cell.samplings()[0])
        config = _training(steps, 2e-3, weight_decay=0.03, average_decay=0.995)
        started_s = time.perf_counter()
        self._fit(stage, config, cell.seed, _name(cell))
        took_s = time.perf_counter() - started_s
        with torch.no_grad(), seeded(cell.seed, "held out"):
            return generator, stage.validate(generator)["token_nats"], took_s

    def _fit(self, stage: Stage, config: TrainerConfig, seed: int, name: str) -> None:
        progress = partial(Progress, name, num_steps=config.num_steps, stream=io.StringIO())
        Trainer(stage, config, self.folder / name, progress, seed=seed).fit()

    def _score(self, generator: Generator, tokenizer: Tokenizer, sampling: SamplingConfig) -> Score:
        num_classes = generator.config.num_classes
        requests = [
            ImageRequest(class_id=seed % num_classes, seed=seed, sampling=sampling)
            for seed in range(self.scale.images_per_class * num_classes)
        ]
        started_s = time.perf_counter()
        images = np.concatenate(
            [
                generate(generator, tokenizer, requests[start : start + BATCH_SIZE])
                for start in range(0, len(requests), BATCH_SIZE)
            ]
        )
        rate = len(images) / (time.perf_counter() - started_s)
        classes = torch.tensor([request.class_id for request in requests])
        return Score(
            sampling=sampling,
            frechet=round(self._frechet(images), 4),
            accuracy=round(seen_by(self.judge, images).accuracy(classes), 4),
            images_per_s=round(rate, 1),
        )

    def _frechet(self, images: Pixels) -> float:
        return frechet_distance(self.real.gaussian, seen_by(self.judge, images).gaussian)


def _training(
    steps: int, rate: float, *, weight_decay: float, average_decay: float
) -> TrainerConfig:
    """Return a training of `steps`, measured at its end only."""
    return TrainerConfig(
        num_steps=steps,
        batch_size=32,
        optimiser=OptimiserConfig(
            learning_rate=rate,
            final_learning_rate=1e-5,
            warmup_steps=steps // 15,
            beta1=0.9,
            beta2=0.96,
            weight_decay=weight_decay,
            max_grad_norm=1.0,
        ),
        average_decay=average_decay,
        validate_every=steps,
        checkpoint_every=steps,
    )


def _name(cell: Cell) -> str:
    return f"generator-{'-'.join(str(value) for value in cell.to_json().values())}"
