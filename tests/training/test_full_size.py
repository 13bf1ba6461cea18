"""A published size takes a real step: forward, backward, AdamW, checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.generator import Generator
from model.tokenizer import Tokenizer
from tests.training.tiny_runs import make_trainer, tokenizer_stage
from training.generator_stage import GeneratorStage
from training.initialise import initialise_generator, initialise_tokenizer
from training.memory_estimate import estimate_generator, estimate_tokenizer, gigabytes
from training.perceptual_losses import build_losses
from training.pixel_data import HeldPixels
from training.presets import GENERATORS, TOKENIZERS
from training.pretokenize import TokenizedImages
from training.pretrained import NetworksConfig
from training.tokenizer_loss import TokenizerLossWeights
from training.tokenizer_stage import TokenizerStage

MEMORY = Path("/proc/meminfo")


class Quiet(GeneratorStage):
    """Measures and draws nothing: that takes longer than the step."""

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"bit_loss": 0.0}

    def draw(self, model: torch.nn.Module, path: Path) -> None:
        pass


def skip_without(num_bytes: float) -> None:
    """Skip unless so much memory is to be had now: whoever takes more ends somebody's process."""
    if not MEMORY.exists():
        pytest.skip(f"{MEMORY}, which says how much memory is to be had, is of Linux")
    (kilobytes,) = re.findall(r"^MemAvailable: +(\d+) kB$", MEMORY.read_text("utf-8"), re.MULTILINE)
    if 1024 * int(kilobytes) < num_bytes:
        pytest.skip(
            f"needs {gigabytes(round(num_bytes))} of memory, and there are "
            f"{gigabytes(1024 * int(kilobytes))}"
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bar_b_takes_a_step(tmp_path: Path) -> None:
    """BAR-B trains on one image in float32, changes its weights, and is saved and read back."""
    recipe = GENERATORS["bar-b"]
    training = recipe.training.but(num_steps=1, batch_size=1, precision="float32")
    estimate = estimate_generator(recipe.generator, training)
    skip_without(1.5 * estimate.total)
    generator = Generator(recipe.generator)
    initialise_generator(generator)
    tokens = torch.randint(0, 2, (2, 256, 16), dtype=torch.uint8)
    images = TokenizedImages(tokens, torch.tensor([1, 2]))
    stage = Quiet(
        generator, images, images, recipe.masking, tokenizer_stage().model, recipe.sampling
    )
    before = generator.get_parameter("head.bit_logits.weight").detach().clone()
    trainer = make_trainer(stage, tmp_path, training)
    metrics = trainer._take_step(trainer._fetch(0))
    assert 0.6 < metrics["loss"] < 1.2  # near ln 2: random logits of about unit size
    assert not torch.equal(before, generator.get_parameter("head.bit_logits.weight"))
    trainer._save()
    assert 1 == make_trainer(stage, tmp_path, training).step


class QuietTokenizer(TokenizerStage):
    """Measures and draws nothing."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"l2": 0.0}

    def draw(self, model: nn.Module, path: Path) -> None:
        pass


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_tokenizer_takes_a_step(tmp_path: Path) -> None:
    """BAR-FSQ of 16 bits over SigLIP2, weights random, trains on one image: reconstruction and the
    projection of its features; the frozen tower stays, its trained copy and the decoder move."""
    pytest.importorskip("transformers", reason="pip install 'bar-serve[siglip2]'")
    recipe = TOKENIZERS["bar-fsq-16bits"]
    at_once = recipe.training.optimiser.but(warmup_steps=0)  # or a step is lost in rounding
    training = recipe.training.but(
        num_steps=1, batch_size=1, precision="float32", recompute=True, optimiser=at_once
    )
    skip_without(1.15 * estimate_tokenizer(recipe.tokenizer, training).total)
    torch.manual_seed(0)
    tokenizer = Tokenizer(recipe.tokenizer)
    initialise_tokenizer(tokenizer)
    weights = TokenizerLossWeights(l2=1.0, l1=0.1, clip=0.7)
    pixels = HeldPixels(torch.rand(1, 3, 256, 256) * 2 - 1)
    losses = build_losses(weights, tokenizer, NetworksConfig())
    stage = QuietTokenizer(tokenizer, pixels, pixels, weights, losses)
    before = {name: value.detach().clone() for name, value in watched(tokenizer).items()}
    trainer = make_trainer(stage, tmp_path, training)
    metrics = trainer._take_step(trainer._fetch(0))
    assert 0 < metrics["clip"] < float("inf")
    assert 0 < metrics["grad_norm"] < float("inf")
    after = watched(tokenizer)
    assert [True, False, True] == [not torch.equal(before[name], after[name]) for name in before]


def watched(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return a matrix of the trained tower, the same of the frozen one, and one of the decoder."""
    parameters = dict(tokenizer.named_parameters())
    names = (
        "encoder.trained.layers.0.mlp.fc1.weight",
        "encoder.frozen.encoder.layers.0.mlp.fc1.weight",
        "decoder.blocks.0.mlp.fc1.weight",
    )
    return {name: parameters[name] for name in names}
