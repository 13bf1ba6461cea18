"""Random and raster generation orders in training."""

import pytest
import torch

from training.order_annealing import OrderAnnealing, draw_orders


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 1.0), (99, 1.0), (100, 1.0), (150, 0.5), (175, 0.25), (200, 0.0), (999, 0.0)],
)
def test_share_falls_linearly(step: int, share: float) -> None:
    """All orders are random before the start, none after the end, linearly between."""
    assert share == OrderAnnealing(start=100, end=200).random_share(step)


def test_minus_one_is_raster_only() -> None:
    """Start and end of -1 switch random orders off, at any scale."""
    annealing = OrderAnnealing(start=-1, end=-1)
    assert 0.0 == annealing.random_share(0)
    assert annealing == annealing.scaled(0.1)


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, -1), (-2, -2)])
def test_impossible_annealing_is_refused(start: int, end: int) -> None:
    """The end may not come before the start; -1 only for both."""
    with pytest.raises(ValueError, match=f"start {start} and end {end}"):
        OrderAnnealing(start=start, end=end)


def test_orders_are_permutations() -> None:
    """Every row is a permutation of the cells, whatever the share."""
    torch.manual_seed(0)
    for share in (0.0, 0.5, 1.0):
        orders = draw_orders(64, 9, share)
        assert torch.equal(torch.arange(9).expand(64, -1), orders.sort(dim=1).values)


def test_share_of_random_orders() -> None:
    """Images are in raster order with the complementary probability, each on its own."""
    torch.manual_seed(0)
    is_raster = (draw_orders(4000, 9, 0.25) == torch.arange(9)).all(dim=1)
    assert 0.75 == pytest.approx(is_raster.float().mean().item(), abs=0.03)
    assert (draw_orders(10, 9, 0.0) == torch.arange(9)).all()


def test_random_orders_are_uniform() -> None:
    """Each cell comes first equally often."""
    torch.manual_seed(0)
    first = draw_orders(9000, 9, 1.0)[:, 0].bincount(minlength=9)
    assert 5 * 1000**0.5 > (first - 1000).abs().max()
