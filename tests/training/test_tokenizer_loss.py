"""The tokenizer's weighted losses."""

import pytest
import torch
from torch import Tensor

from model.tokenizer import TokenizerOutput
from training.tokenizer_loss import TokenizerLossWeights, tokenizer_loss

RECONSTRUCTION = torch.full((2, 3, 4, 4), 0.5)
PIXELS = torch.full((2, 3, 4, 4), -0.5)


def output(reconstruction: Tensor) -> TokenizerOutput:
    """Return a tokenizer's output of which only the pixels matter."""
    return TokenizerOutput(reconstruction, torch.empty(0), torch.empty(0), None)


def test_losses_are_summed_by_weight() -> None:
    """The total is 2 · L2 + 3 · L1, and each is reported unweighted."""
    half = RECONSTRUCTION / 2
    total, parts = tokenizer_loss(output(half), PIXELS, TokenizerLossWeights(l2=2.0, l1=3.0))
    assert {"l2": 0.5625, "l1": 0.75} == parts
    assert 2 * 0.5625 + 3 * 0.75 == total.item()


def test_loss_of_weight_zero_is_left_out() -> None:
    """A weight of 0 computes nothing and reports nothing."""
    total, parts = tokenizer_loss(
        output(RECONSTRUCTION), PIXELS, TokenizerLossWeights(l2=0.0, l1=1.0)
    )
    assert {"l1": 1.0} == parts
    assert 1.0 == total.item()


@pytest.mark.parametrize("weights", [{"l2": 0.0, "l1": 0.0}, {"l2": -1.0}])
def test_impossible_weights_are_refused(weights: dict[str, float]) -> None:
    """Negative weights, and none at all, are errors."""
    with pytest.raises(ValueError, match="loss weights"):
        TokenizerLossWeights(**weights)
