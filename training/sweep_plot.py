"""The picture of a sweep: distance against time, precision against recall, each with its front.

Drawn by `bar sweep` after every row. Letters on a front stand for settings, told below as far as
the sweep varied them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from model.config import SamplingConfig
from training.pictures import save_figure
from training.sweep_results import Row, Sweep

PLOT_FILE = "sweep.png"
FRONT, OTHERS, BEST = "tab:blue", "0.7", "tab:orange"


def save_plot(folder: Path, sweep: Sweep) -> None:
    """Draw one panel, or two where precision and recall were measured."""
    varied = sweep.variety_front()
    figure = Figure(figsize=(5.5 * (2 if varied else 1), 5.0), layout="constrained")
    axes = figure.add_subplot(1, 2 if varied else 1, 1)
    _panel(axes, sweep, sweep.speed_front(), _time_and_distance)
    axes.set(xlabel="time per image, ms", ylabel=sweep.names["frechet"])
    axes.set_title(f"{sweep.recipe['model']}, {sweep.recipe['images']} images a point")
    if varied:
        axes = figure.add_subplot(1, 2, 2)
        _panel(axes, sweep, varied, _recall_and_precision)
        axes.set(xlabel="recall", ylabel="precision", title="fidelity and variety")
    draft = folder / f".{PLOT_FILE}.draft"
    save_figure(draft, figure)
    draft.replace(folder / PLOT_FILE)


Place = Callable[[Row], tuple[float, float]]


def _time_and_distance(row: Row) -> tuple[float, float]:
    return 1000 / row.images_per_s, row.figures.frechet


def _recall_and_precision(row: Row) -> tuple[float, float]:
    return row.figures.recall or 0.0, row.figures.precision or 0.0


def _panel(axes: Any, sweep: Sweep, front: Sequence[Row], place: Place) -> None:
    axes.plot(*zip(*map(place, sweep.rows), strict=True), "o", color=OTHERS, label="settings")
    axes.plot(*zip(*map(place, front), strict=True), "o-", color=FRONT, label="front")
    axes.plot(
        *place(sweep.best),
        "*",
        color=BEST,
        markersize=14,
        label=f"best {sweep.names[sweep.best_by]}",
    )
    entries, texts = axes.get_legend_handles_labels()
    settings = [row.sampling for row in sweep.rows]
    for letter, row in zip(ascii_uppercase, front, strict=False):
        axes.annotate(letter, place(row), xytext=(4, 5), textcoords="offset points")
        entries.append(Line2D([], [], linestyle="none"))
        texts.append(f"{letter}: {_label(row.sampling, settings)}")
    axes.margins(0.1)
    axes.grid(visible=True, alpha=0.3)
    # Below the panel: labels at the points would lie over each other.
    axes.legend(
        entries, texts, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, frameon=False,
        fontsize=8, handlelength=1.2,
    )  # fmt: skip


def _label(sampling: SamplingConfig, others: Sequence[SamplingConfig]) -> str:
    """Name those settings that vary."""
    parts = {
        "guidance_scale": f"guidance {sampling.guidance_scale:g}",
        "temperature": f"temp. {sampling.temperature:g}",
        "unmask_schedule": "·".join(map(str, sampling.unmask_schedule)),
        "order": sampling.order,
    }
    varied = [
        text
        for name, text in parts.items()
        if any(getattr(other, name) != getattr(sampling, name) for other in others)
    ]
    return ", ".join(varied)
