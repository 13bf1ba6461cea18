"""Curves as SVG, for the report: drawn by hand, since they take the page's colours, light or dark.

Called by `report.py`. A curve of many steps is thinned to the lowest and highest value of each
stretch, so that a spike stays visible however long the run was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]  # step, value

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 22
MAX_STRETCHES = 160
MAX_DOTS = 40
LOG_RANGE = 30  # from the lowest to the highest value, above which the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """Values over steps; `style` is a class of the page."""

    label: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """Where values stand between two pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (
            (math.log(part) if self.is_log else part) for part in (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def chart(title: str, curves: Sequence[Curve], *, may_be_log: bool = False) -> str:
    """Return a figure with its curves, its axes and, for several curves, their names; nothing
    where there is nothing to show."""
    curves = [
        Curve(curve.label, curve.style, finite)
        for curve in curves
        if (finite := [point for point in curve.points if all(map(math.isfinite, point))])
    ]
    if not curves:
        return ""
    across, up = axes(curves, may_be_log=may_be_log)
    names = [f'<li class="{curve.style}">{escape(curve.label)}</li>' for curve in curves]
    legend = f"<ul>{''.join(names)}</ul>" if len(curves) > 1 else ""
    drawn = "".join(_draw(curve, across, up) for curve in curves)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_said(title, curves))}">'
        f"{_grid(across, up)}{drawn}</svg></figure>"
    )


def axes(curves: Sequence[Curve], *, may_be_log: bool) -> tuple[Axis, Axis]:
    """Return the axes of steps and of values."""
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = min(values), max(values)
    is_log = may_be_log and low > 0 and high / low > LOG_RANGE
    if low == high:
        low, high = (0, 1) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    return (
        Axis(min(steps), max(*steps, min(steps) + 1), LEFT, WIDTH - RIGHT),
        Axis(low, high, HEIGHT - BOTTOM, TOP, is_log),
    )


def thinned(points: Sequence[Point], limit: int = MAX_STRETCHES) -> list[Point]:
    """Return the points, or of each of `limit` stretches the lowest and the highest."""
    if len(points) <= 2 * limit:
        return list(points)
    kept = list[Point]()
    for index in range(limit):
        start, end = (len(points) * edge // limit for edge in (index, index + 1))
        stretch = points[start:end]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def ticks(axis: Axis) -> list[float]:
    """Return a few round values between the ends of an axis."""
    if axis.is_log:
        return _log_ticks(axis.low, axis.high)
    rough = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    first = math.ceil(axis.low / step - 1e-9)
    return [index * step for index in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 3) if len(decades) <= 4 else (1,)
    values = [10.0**decade * factor for decade in decades for factor in factors]
    inside = [value for value in values if low <= value * (1 + 1e-9) and value * (1 - 1e-9) <= high]
    return inside[:: -(-len(inside) // 5)]


def number(value: float) -> str:
    """Return a number as people write it: 0.25, 1,200, 3e-05."""
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-3:
        return f"{value:.2g}".replace("e+", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _draw(curve: Curve, across: Axis, up: Axis) -> str:
    placed = [(across.place(x), up.place(y)) for x, y in thinned(curve.points)]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    dots = ""
    if len(curve.points) <= MAX_DOTS and curve.style != "train":
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"><title>'
            f"step {step:,.0f}: {number(value)}</title></circle>"
            for (x, y), (step, value) in zip(placed, curve.points, strict=True)
        )
    return f'<g class="{curve.style}"><path d="M{line}"/>{dots}</g>'


def _grid(across: Axis, up: Axis) -> str:
    parts = list[str]()
    for value in ticks(up):
        y = up.place(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(across):
        x = across.place(value)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{number(value)}</text>'
        )
    return "".join(parts)


def _said(title: str, curves: Sequence[Curve]) -> str:
    ends = "; ".join(
        f"{curve.label} from {number(curve.points[0][1])} to {number(curve.points[-1][1])}"
        for curve in curves
    )
    first, last = curves[0].points[0][0], curves[0].points[-1][0]
    return f"{title}, step {first:,.0f} to {last:,.0f}: {ends}"
