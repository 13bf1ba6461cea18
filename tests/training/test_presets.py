"""The presets are the published recipes: compared with the tables in published_recipes.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.presets import GENERATORS, TOKENIZERS

PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("published_recipes.json").read_text("utf-8")
)
NAMES = [name for name, value in PUBLISHED["generator"].items() if isinstance(value, dict)]


@pytest.mark.parametrize("name", PUBLISHED["tokenizer"]["sizes"])
def test_tokenizers_are_trained_as_published(name: str) -> None:
    """Losses, optimiser, schedule, average and sizes are those of the published tokenizers."""
    recipe, table = TOKENIZERS[name], PUBLISHED["tokenizer"]
    assert table["losses"] == recipe.losses.to_json()
    assert table["adversarial_start"] == recipe.discriminator.start
    assert table["discriminator_learning_rate"] == recipe.discriminator.learning_rate
    optimiser = recipe.training.optimiser
    for key in (
        "learning_rate",
        "final_learning_rate",
        "encoder_scale",
        "weight_decay",
        "warmup_steps",
        "max_grad_norm",
    ):
        assert table[key] == getattr(optimiser, key), key
    assert table["betas"] == [optimiser.beta1, optimiser.beta2]
    assert table["steps"] == recipe.training.num_steps
    assert table["batch_size"] == recipe.training.batch_size
    assert table["average_decay"] == recipe.training.average_decay
    size = [recipe.tokenizer.image_size, recipe.tokenizer.bits_per_latent]
    assert table["sizes"][name] == size
    assert "bfloat16" == recipe.training.precision


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_trained_as_published(name: str) -> None:
    """Optimiser, schedule, annealing, dropout, sizes and sampling are those of the paper."""
    recipe, shared = GENERATORS[name], PUBLISHED["generator"]
    optimiser, table = recipe.training.optimiser, shared[name]
    for key in ("learning_rate", "final_learning_rate", "weight_decay", "max_grad_norm"):
        assert shared[key] == getattr(optimiser, key), key
    assert shared["betas"] == [optimiser.beta1, optimiser.beta2]
    assert shared["batch_size"] == recipe.training.batch_size
    assert shared["class_dropout"] == recipe.masking.class_dropout
    assert table["steps"] == recipe.training.num_steps
    assert table["warmup_steps"] == optimiser.warmup_steps
    annealing = recipe.masking.order_annealing
    assert table["annealing"] == [annealing.start, annealing.end]
    assert "logit_normal" == recipe.masking.mask_distribution
    assert table["dropout"] == recipe.dropout
    assert recipe.training.average_decay is None
    size = recipe.generator
    assert table["size"] == [size.width, size.depth, size.num_heads]
    assert [table["grid"], table["patch"]] == [size.grid_size, size.patch_size]
    assert [table["bits_per_token"], table["tokens"]] == [size.bits_per_token, size.num_tokens]
    sampling = recipe.sampling
    assert table["guidance"] == sampling.guidance_scale
    assert table["temperature"] == sampling.temperature
    assert table["schedule"] == list(sampling.unmask_schedule)
