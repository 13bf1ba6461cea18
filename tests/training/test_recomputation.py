"""Blocks that are computed twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.test_trainer import assert_same, final_state
from tests.training.tiny_runs import generator_stage, make_trainer, tokenizer_stage, trainer_config
from training.memory_estimate import estimate_generator, estimate_tokenizer
from training.presets import GENERATORS, TOKENIZERS
from training.stage import Stage


@pytest.mark.parametrize("make_stage", [generator_stage, tokenizer_stage])
def test_results_do_not_change(tmp_path: Path, make_stage: Callable[[], Stage]) -> None:
    """Weights, average and optimiser are bitwise those of a run that keeps everything; dropout
    included."""
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
