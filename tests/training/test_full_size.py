"""A published size takes a real step: forward, backward, AdamW, checkpoint."""

import os
from pathlib import Path

import pytest
import torch

from model.generator import Generator
from tests.training.tiny_runs import make_trainer, tokenizer_stage
from training.generator_stage import GeneratorStage
from training.initialise import initialise_generator
from training.memory_estimate import estimate_generator
from training.presets import GENERATORS
from training.pretokenize import TokenizedImages


class Quiet(GeneratorStage):
    """Measures and draws nothing: that takes longer than the step."""

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"bit_loss": 0.0}

    def draw(self, model: torch.nn.Module, path: Path) -> None:
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bar_b_takes_a_step(tmp_path: Path) -> None:
    """BAR-B trains on one image in float32, changes its weights, and is saved and read back."""
    recipe = GENERATORS["bar-b"]
    training = recipe.training.but(num_steps=1, batch_size=1, precision="float32")
    estimate = estimate_generator(recipe.generator, training)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if there < 1.5 * estimate.total:
        pytest.skip(f"needs {1.5 * estimate.total / 1e9:.0f} GB of memory")
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
