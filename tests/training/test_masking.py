"""Bit masks and dropped labels."""

import math

import pytest
import torch

from training.masking import draw_bit_masks, draw_round_masks, drop_classes


@pytest.mark.parametrize("num_bits", [1, 4, 16, 64])
def test_hidden_bits_follow_the_ratio(num_bits: int) -> None:
    """Each token hides max(1, round(k · ratio)) bits, and the ratio lies in [1/k, 1]."""
    torch.manual_seed(0)
    mask, ratio = draw_bit_masks(40, 25, num_bits)
    assert (40, 25, num_bits) == tuple(mask.shape)
    assert torch.bool == mask.dtype
    assert torch.equal((num_bits * ratio).round().clamp_min(1), mask.sum(-1).float())
    assert 1 / num_bits <= ratio.min()
    assert 1 >= ratio.max()


def test_ratio_is_logit_normal() -> None:
    """The ratio's logit is normal with mean 0 and deviation 0.8."""
    torch.manual_seed(0)
    _, ratio = draw_bit_masks(500, 100, bits_per_token=10**4 // 100)
    logit = torch.logit(ratio[ratio > 0.011])
    assert 0.0 == pytest.approx(logit.mean().item(), abs=0.02)
    assert 0.8 == pytest.approx(logit.std().item(), abs=0.02)


def test_rounds_hide_any_number_of_bits_as_often() -> None:
    """Before a round of some one-bit-a-round schedule, 1 to k bits are hidden, each number as
    likely, and each bit as often as the others."""
    torch.manual_seed(0)
    mask, num_hidden = draw_round_masks(400, 50, 8)
    assert torch.equal(num_hidden, mask.sum(-1))
    shares = num_hidden.flatten().bincount(minlength=9)[1:] / 20_000
    assert 0.0125 > (shares - 1 / 8).abs().max()
    assert 5 * math.sqrt(0.25 / 20_000) > (mask.float().mean(dim=(0, 1)) - 4.5 / 8).abs().max()


def test_every_bit_is_hidden_equally_often() -> None:
    """No position is favoured: each bit is hidden in about half of the tokens."""
    torch.manual_seed(0)
    mask, _ = draw_bit_masks(400, 50, 8)
    share = mask.float().mean(dim=(0, 1))
    assert 5 * math.sqrt(0.25 / 20000) > (share - share.mean()).abs().max()


def test_classes_are_dropped_with_the_given_probability() -> None:
    """A tenth of the labels becomes the null class, the others stay as they are."""
    torch.manual_seed(0)
    class_ids = torch.arange(20000) % 7
    dropped = drop_classes(class_ids, null_class=7, probability=0.1)
    is_null = dropped == 7
    assert 0.1 == pytest.approx(is_null.float().mean().item(), abs=0.01)
    assert torch.equal(class_ids[~is_null], dropped[~is_null])
