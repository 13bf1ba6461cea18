"""The digits recipe: tokenizer, tokens, generator, model directory, in minutes on two CPU cores.

Called by `bar train digits`. It makes the model that is bundled with the project, with the same
stages and trainer as any larger one. A run lives in one folder and goes on from there:

    recipe.json  tokenizer/  generator/  (metrics.jsonl, samples, checkpoints)
    curves.png   model/      what `bar serve --model` loads

The weights kept are those with the lowest held-out loss: with 1257 training images a long run
memorises. Shifting the images for variety was tried elsewhere and hurts.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from model.checkpoint import save_model
from model.class_labels import ClassLabels
from model.config import PRESETS
from model.generator import Generator
from model.tokenizer import Tokenizer
from training import digits_data
from training.digits_data import DigitsData, LabelledImages
from training.generator_stage import GeneratorLossConfig, GeneratorStage
from training.initialise import initialise_generator, initialise_tokenizer
from training.metrics_log import MetricsLog
from training.pictures import save_curves
from training.pixel_data import HeldPixels
from training.presets import DIGITS_GENERATOR, DIGITS_TOKENIZER
from training.pretokenize import TokenizedImages, pretokenize
from training.progress import Progress
from training.randomness import derive_seed
from training.run_folder import claim
from training.section import Section
from training.stage import Stage
from training.tokenizer_loss import TokenizerLossWeights
from training.tokenizer_stage import TokenizerStage
from training.trainer import METRICS_FILE, Trainer
from training.trainer_config import TrainerConfig

PRESET = PRESETS["digits"]


class DigitsRecipe(Section):
    """Everything that decides what a run computes, sizes aside: those are the preset's."""

    seed: int
    tokenizer: TrainerConfig
    tokenizer_losses: TokenizerLossWeights
    generator: TrainerConfig
    generator_loss: GeneratorLossConfig
    dropout: float

    def scaled(self, share: float) -> "DigitsRecipe":
        """Return a recipe of `share` of the steps, warm-up and order annealing in proportion."""
        annealing = self.generator_loss.order_annealing.scaled(share)
        return self.but(
            tokenizer=self.tokenizer.scaled(share),
            generator=self.generator.scaled(share),
            generator_loss=self.generator_loss.but(order_annealing=annealing),
        )


RECIPE = DigitsRecipe(
    seed=DIGITS_GENERATOR.seed,
    tokenizer=DIGITS_TOKENIZER.training,
    tokenizer_losses=DIGITS_TOKENIZER.losses,
    generator=DIGITS_GENERATOR.training,
    generator_loss=DIGITS_GENERATOR.masking,
    dropout=DIGITS_GENERATOR.dropout,
)


def train_digits(
    recipe: DigitsRecipe,
    folder: Path,
    stream: TextIO,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train in `folder`, or go on there, and return the directory of the finished model.

    Raises TrainingError if `folder` holds a run of another recipe; see also `Trainer.fit`.
    """
    text = json.dumps(recipe.to_json(), indent=2) + "\n"
    claim(folder, text, "recipe.json")
    run = _Run(recipe, folder, stream, should_stop)
    data = digits_data.load(PRESET.tokenizer.image_size)
    tokenizer = run.train_tokenizer(data)
    generator = run.train_generator(tokenizer, data)
    curves = folder / "curves.png"
    stages = (TokenizerStage.name, GeneratorStage.name)
    save_curves(curves, {name: MetricsLog(folder / name / METRICS_FILE).read() for name in stages})
    directory = folder / "model"
    save_model(
        directory,
        generator,
        tokenizer,
        PRESET.sampling,
        ClassLabels.from_names(digits_data.NAMES),
        name="digits",
        dtype=torch.float16,
        extra_files={"curves.png": curves.read_bytes()},
        source="trained by `bar train digits` on scikit-learn's handwritten digits",
    )
    return directory


@dataclass(frozen=True)
class _Run:
    recipe: DigitsRecipe
    folder: Path
    stream: TextIO
    should_stop: Callable[[], bool]

    def train_tokenizer(self, data: DigitsData) -> Tokenizer:
        with self._seeded("tokenizer"):
            tokenizer = Tokenizer(PRESET.tokenizer)
            initialise_tokenizer(tokenizer)
        stage = TokenizerStage(
            tokenizer,
            HeldPixels(data.train.pixels),
            HeldPixels(data.held_out.pixels),
            self.recipe.tokenizer_losses,
        )
        self._fit(stage, self.recipe.tokenizer)
        return tokenizer

    def train_generator(self, tokenizer: Tokenizer, data: DigitsData) -> Generator:
        with self._seeded("generator"):
            generator = Generator(PRESET.generator, self.recipe.dropout)
            initialise_generator(generator)
        stage = GeneratorStage(
            generator,
            self._tokens(tokenizer, data.train),
            self._tokens(tokenizer, data.held_out),
            self.recipe.generator_loss,
            tokenizer,
            PRESET.sampling,
        )
        self._fit(stage, self.recipe.generator)
        return generator

    def _tokens(self, tokenizer: Tokenizer, images: LabelledImages) -> TokenizedImages:
        return pretokenize(tokenizer, *images, PRESET.generator.patch_size)

    def _fit(self, stage: Stage, config: TrainerConfig) -> None:
        Trainer(
            stage,
            config,
            self.folder / stage.name,
            partial(Progress, stage.name, num_steps=config.num_steps, stream=self.stream),
            seed=self.recipe.seed,
            should_stop=self.should_stop,
        ).fit()

    @contextmanager
    def _seeded(self, name: str) -> Iterator[None]:
        """Draw initial weights that belong to the recipe's seed, and leave torch's generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.recipe.seed, "initial weights", name))
            yield
