"""How much memory a run will need."""

import torch

from model.config import PRESETS
from model.generator import Generator
from training.memory_estimate import estimate_generator, estimate_tokenizer
from training.presets import GENERATORS, TOKENIZERS


def test_estimate_counts_the_model() -> None:
    """Parameters are those of the model; AdamW keeps twice as much beside them."""
    recipe = GENERATORS["digits"]
    estimate = estimate_generator(recipe.generator, recipe.training)
    num_parameters = sum(p.numel() for p in Generator(recipe.generator).parameters())
    assert num_parameters == estimate.num_parameters
    assert 4 * num_parameters == estimate.weights == estimate.gradients == estimate.average
    assert 8 * num_parameters == estimate.optimiser


def test_activations_follow_the_micro_batch() -> None:
    """Half the batch at a time keeps half the activations, but for a few numbers that belong to no
    image; nothing else changes."""
    recipe = GENERATORS["digits"]
    whole = estimate_generator(recipe.generator, recipe.training)
    halves = estimate_generator(recipe.generator, recipe.training.but(micro_batches=2))
    assert 0 <= 2 * halves.activations - whole.activations < 1000
    assert whole.weights == halves.weights


def test_copies_of_weights_are_there_once() -> None:
    """In bfloat16 an image keeps less than in float32; beside it are the weights' copies, which a
    larger batch does not multiply."""
    recipe = GENERATORS["digits"]

    def kept(precision: str, batch_size: int) -> int:
        training = recipe.training.but(precision=precision, batch_size=batch_size)
        return estimate_generator(recipe.generator, training).activations

    full, half = (kept(name, 65) - kept(name, 1) for name in ("float32", "bfloat16"))
    assert 0.5 * full < half < 0.8 * full
    copies = kept("bfloat16", 1) - half / 64
    num_parameters = sum(p.numel() for p in Generator(recipe.generator).parameters())
    assert 0.8 < copies / (2 * num_parameters) < 1.1


def test_activations_are_what_autograd_keeps() -> None:
    """The estimate for a batch of 8 is what a real forward pass of 8 keeps, within a tenth."""
    recipe = TOKENIZERS["digits"]
    from model.tokenizer import Tokenizer

    kept: dict[int, int] = {}
    tokenizer = Tokenizer(recipe.tokenizer)
    own = {p.untyped_storage().data_ptr() for p in tokenizer.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = tokenizer(torch.zeros(8, 3, 64, 64)).reconstruction.square().mean()
    estimate = estimate_tokenizer(recipe.tokenizer, recipe.training.but(batch_size=8))
    assert loss.requires_grad
    assert abs(estimate.activations / sum(kept.values()) - 1) < 0.1


def test_published_sizes_are_estimated_without_their_memory() -> None:
    """BAR-B is 415 M parameters, estimated from shapes alone; SigLIP2's frozen tower is counted."""
    recipe = GENERATORS["bar-b"]
    estimate = estimate_generator(PRESETS["bar-b"].generator, recipe.training)
    assert 415 == round(estimate.num_parameters / 1e6)
    assert "415.3 M parameters" in estimate.text()
    tokenizer = TOKENIZERS["bar-fsq-16bits"]
    estimate = estimate_tokenizer(tokenizer.tokenizer, tokenizer.training)
    assert estimate.weights > 1.5 * estimate.gradients


def test_processes_share_the_batch_and_on_request_the_model() -> None:
    """Of four processes each computes a quarter of the batch. In shares each has a quarter of the
    rest, and a whole copy to measure; gradients of several parts stay whole meanwhile."""
    recipe = GENERATORS["bar-b"]
    whole = estimate_generator(recipe.generator, recipe.training)
    plain = whole.on_each_of(4, recipe.training)
    assert whole.activations == 4 * plain.activations
    assert whole.weights == plain.weights
    training = recipe.training.but(sharding="full")
    shared = whole.on_each_of(4, training)
    for part in ("weights", "gradients", "optimiser", "average", "activations"):
        assert -(-getattr(whole, part) // 4) == getattr(shared, part)
    assert whole.weights == shared.measured
    assert "whole copy to measure 1.7 GB" in shared.text()
    assert whole.gradients == whole.on_each_of(4, training.but(micro_batches=2)).gradients
    assert whole == whole.on_each_of(1, training)
