"""Data order and seeds as functions of the step."""

import pytest
import torch

from training.randomness import batch_indices, derive_seed


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25])
def test_each_epoch_sees_every_example_once(batch_size: int) -> None:
    """Whatever the batch size, ten examples at a time are a permutation, also across batches."""
    steps = range(-(-30 // batch_size))
    seen = torch.cat([batch_indices(3, step, 10, batch_size) for step in steps])[:30]
    for epoch in seen.split(10):
        assert list(range(10)) == epoch.sort().values.tolist()


def test_epochs_and_seeds_differ() -> None:
    """Another epoch and another seed have another order."""
    orders = {
        tuple(batch_indices(seed, step, 50, 50).tolist()) for seed in (1, 2) for step in (0, 1)
    }
    assert 4 == len(orders)


def test_seeds_do_not_collide() -> None:
    """Purposes and steps of one run have seeds of their own, the same in every process."""
    seeds = {
        derive_seed(0, name, step) for name in ("tokenizer", "generator") for step in range(500)
    }
    assert 1000 == len(seeds)
    assert 4442192553140575738 == derive_seed(0, "generator", 0)
