"""Curves of the report."""

import math
import re

import pytest

from training.report_curves import (
    HEIGHT,
    MAX_STRETCHES,
    WIDTH,
    Axis,
    Curve,
    chart,
    number,
    thinned,
    ticks,
)


def test_spikes_survive_thinning() -> None:
    """Of ten thousand points some hundred stay: ends, lowest and highest among them, in order."""
    points = [(float(step), 1.0) for step in range(10_000)]
    points[6789], points[1234] = (6789.0, 50.0), (1234.0, -3.0)
    kept = thinned(points)
    assert len(kept) <= 2 * MAX_STRETCHES
    assert {(6789.0, 50.0), (1234.0, -3.0)} <= set(kept)
    assert kept == sorted(kept)
    assert points[:200] == thinned(points[:200])


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0001, 0.00095, False, [0.0002, 0.0004, 0.0006, 0.0008]),
        (0.002, 0.3, True, [0.003, 0.01, 0.03, 0.1, 0.3]),
        (1e-6, 20, True, [1e-6, 1e-4, 1e-2, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, is_log: bool, expected: list[float]) -> None:
    """A few round values between the ends, of decades where the axis is logarithmic."""
    assert expected == pytest.approx(ticks(Axis(low, high, 0, 1, is_log)))


def test_curves_stay_in_their_frame() -> None:
    """Whatever the values, flat, negative or not finite, lines lie within the picture."""
    for values in ([1.0, 1.0], [0.0, 0.0], [-5.0, 3.0, math.nan], [1e-9, 1e9], [7.0]):
        figure = chart("t", [Curve("c", "c1", list(enumerate(values)))], may_be_log=True)
        assert "nan" not in figure
        path = re.search(r'<path d="M([^"]*)"', figure)
        assert path
        for pair in path[1].split("L"):
            x, y = map(float, pair.split())
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_nothing_to_show_is_no_figure() -> None:
    """Without a finite value there is no figure."""
    assert "" == chart("t", [Curve("c", "c1", [(0, math.nan)])])
    assert "" == chart("t", [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25"),
        (1234.5, "1,234"),
        (3e-5, "3e-05"),
        (0, "0"),
        (2e9, "2e09"),
        (12.3456, "12.35"),
    ],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    """Four digits, thousands apart, powers of ten where needed."""
    assert text == number(value)
