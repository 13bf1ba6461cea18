"""Curves over the number of workers, or over load, one picture for each question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

mpl.use("Agg")


@dataclass(frozen=True)
class Curve:
    """A line with its name in the legend; without one it has none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    is_faint: bool = False


def draw(
    path: Path,
    title: str,
    graphs: Sequence[tuple[str, Sequence[Curve]]],
    *,
    is_log: Sequence[bool],
    x_label: str = "workers",
    is_x_log: bool = True,
) -> None:
    """Write a picture with one graph beside the other; each is its y label and its curves."""
    figure, axes = plt.subplots(1, len(graphs), figsize=(5.6 * len(graphs), 4), squeeze=False)
    for axis, (label, curves), log in zip(axes[0], graphs, is_log, strict=True):
        for number, curve in enumerate(c for c in curves if not c.is_faint):
            axis.plot(curve.x, curve.y, ".-", label=curve.name, color=f"C{number}")
        for number, curve in enumerate(c for c in curves if c.is_faint):
            axis.plot(curve.x, curve.y, ":", color=f"C{number}", alpha=0.6)
        axis.set(xlabel=x_label, ylabel=label, xscale="log" if is_x_log else "linear")
        axis.set_yscale("log" if log else "linear")
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
