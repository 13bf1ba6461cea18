"""Blocks that are computed twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.tokenizer import Tokenizer
from tests.training.test_trainer import assert_same, final_state
from tests.training.tiny_runs import (
    generator_stage,
    make_trainer,
    siglip2_stage,
    tokenizer_stage,
    trainer_config,
)
from training.memory_estimate import estimate_generator, estimate_tokenizer
from training.presets import GENERATORS, TOKENIZERS
from training.recomputation import recompute_blocks
from training.stage import Stage


@pytest.mark.parametrize("make_stage", [generator_stage, tokenizer_stage, siglip2_stage])
def test_results_do_not_change(tmp_path: Path, make_stage: Callable[[], Stage]) -> None:
    """Weights, average and optimiser are bitwise those of a run that keeps everything; dropout
    included."""
    if make_stage is siglip2_stage:
        pytest.importorskip("transformers", reason="pip install 'bar-serve[siglip2]'")
    states = []
    for recompute in (False, True):
        config = trainer_config().but(recompute=recompute)
        make_trainer(make_stage(), tmp_path / str(recompute), config).fit()
        states.append(final_state(tmp_path / str(recompute)))
    for part in ("model", "optimiser", "average"):
        assert_same(states[0][part], states[1][part], part)


def test_activations_shrink() -> None:
    """The estimate of a deep model with recomputation is a fraction of that without."""
    generator, tokenizer = GENERATORS["bar-b"], TOKENIZERS["bar-fsq-16bits"]
    for kept, again in (
        (
            estimate_generator(generator.generator, generator.training),
            estimate_generator(generator.generator, generator.training.but(recompute=True)),
        ),
        (
            estimate_tokenizer(tokenizer.tokenizer, tokenizer.training),
            estimate_tokenizer(tokenizer.tokenizer, tokenizer.training.but(recompute=True)),
        ),
    ):
        assert kept.activations > 3 * again.activations
        assert kept.weights == again.weights


def test_layers_of_siglip2_are_blocks_too() -> None:
    """Its trained copy keeps the inputs of its layers alone, like the blocks of this package."""
    pytest.importorskip("transformers", reason="pip install 'bar-serve[siglip2]'")
    kept = []
    for recompute in (False, True):
        stage = siglip2_stage()
        if recompute:
            recompute_blocks(stage.model)
        kept.append(bytes_kept(stage.model, torch.zeros(4, 3, 8, 8)))
    assert kept[0] > 2 * kept[1]


def bytes_kept(tokenizer: Tokenizer, pixels: torch.Tensor) -> int:
    """Return what the forward pass of the encoder keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    own = {weight.untyped_storage().data_ptr() for weight in tokenizer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        features = tokenizer.encode_features(pixels)
    assert features.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own)
