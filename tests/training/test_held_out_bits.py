"""Sums over hidden bits."""

import pytest
import torch

from training.held_out_bits import BitTally


def test_tokens_count_by_how_many_bits_were_hidden() -> None:
    """Of tokens of eight bits, one hides two, two hide eight: the first is in the first quarter."""
    tally = BitTally(8)
    tally.add(torch.tensor([2]), torch.tensor([1.0]), torch.tensor([1]))
    tally.add(torch.tensor([[8], [8]]), torch.tensor([[4.0], [6.0]]), torch.tensor([[8], [4]]))
    metrics = tally.metrics()
    assert {"0_25", "75_100"} == {name[9:] for name in metrics if name.startswith("bit_loss")}
    assert 1 / 2 == metrics["bit_loss_0_25"]
    assert 10 / 16 == metrics["bit_loss_75_100"]
    assert 1 / 2 == metrics["bit_accuracy_0_25"]
    assert 12 / 16 == metrics["bit_accuracy_75_100"]
    assert 13 / 18 == pytest.approx(metrics["bit_accuracy"])
    assert (8 / 2 * 1.0 + 4.0 + 6.0) / 3 == pytest.approx(metrics["token_nats"])


def test_parts_of_a_batch_add_up() -> None:
    """Taken in parts, tokens give the same figures as at once."""
    torch.manual_seed(0)
    hidden = torch.randint(1, 7, (50,))
    nats, right = torch.rand(50), (torch.rand(50) * (hidden + 1)).long()
    whole, parts = BitTally(6), BitTally(6)
    whole.add(hidden, nats, right)
    for part in zip(hidden.split(7), nats.split(7), right.split(7), strict=True):
        parts.add(*part)
    assert whole.metrics() == pytest.approx(parts.metrics())


def test_a_head_without_rounds_has_no_quarters() -> None:
    """Where all bits are always hidden there is one figure of each kind."""
    tally = BitTally(4)
    tally.add(torch.tensor([4, 4]), torch.tensor([2.0, 1.0]), torch.tensor([4, 2]))
    assert {"token_nats": 1.5, "bit_accuracy": 0.75} == tally.metrics()
