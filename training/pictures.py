"""The pictures of a run: grids of images, and curves of what was measured.

Written by the stages, the recipes and the evaluation. Matplotlib is used through
its objects alone, without pyplot: nothing global is set, and no window system is looked for. Text
on grids is in the font that comes with it, which knows more alphabets than Pillow's.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

GAP = 2  # pixels between images
GREY = 128
PAPER, INK = 240, 32  # of sheets with text
PLAIN, BOLD = "DejaVuSans", "DejaVuSans-Bold"
FONT_SIZE = 12
STRIP_HEIGHT = 22  # of a line of text
MIN_CELL = 64  # pixels; smaller images are enlarged, so that names fit above them


def save_grid(path: Path, images: Pixels, num_columns: int) -> None:
    """Write images, uint8 (N, height, width, 3), row by row."""
    write_png(path, tile(images, num_columns))


def save_pairs(path: Path, above: Pixels, below: Pixels, num_columns: int = 10) -> None:
    """Write two sets of images as pairs of rows: the first above, what belongs to it below."""
    write_png(path, tile(pairs(above, below, num_columns), num_columns))


def pairs(above: Pixels, below: Pixels, num_columns: int) -> Pixels:
    """Return the images of two sets in rows by turns; the last rows must be full, or alone."""
    rows: list[Pixels] = []
    for start in range(0, len(above), num_columns):
        rows += [part[start : start + num_columns] for part in (above, below)]
    return np.concatenate(rows)


def save_sheet(
    path: Path, blocks: Mapping[str, Pixels], num_columns: int, heads: Sequence[str] = ()
) -> None:
    """Write blocks of images one below the other, each under its title, columns under `heads`."""
    write_png(path, labelled_sheet(blocks, num_columns, heads))


def labelled_sheet(
    blocks: Mapping[str, Pixels], num_columns: int, heads: Sequence[str] = ()
) -> Pixels:
    """Arrange blocks of images with text; names that are too long for a column end in "…"."""
    strips = list[Pixels]()
    for title, images in blocks.items():
        sheet = tile(_enlarged(images), num_columns, PAPER)
        width = sheet.shape[1]
        strips.append(_strip(width, [title], width, BOLD))
        if heads:
            strips.append(_strip(width, heads, (width - GAP) // num_columns, PLAIN))
        strips.append(sheet)
    return np.concatenate(strips)


def _enlarged(images: Pixels) -> Pixels:
    times = -(-MIN_CELL // images.shape[2])
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _strip(width: int, texts: Sequence[str], cell: int, face: str) -> Pixels:
    strip = Image.new("L", (width, STRIP_HEIGHT), PAPER)
    pen = ImageDraw.Draw(strip)
    for column, text in enumerate(texts):
        place = (GAP + column * cell + 1, STRIP_HEIGHT // 2)
        fitting = shortened(text, cell - 2 * GAP, face)
        pen.text(place, fitting, fill=INK, font=_font(face), anchor="lm")
    return np.asarray(strip)[..., None].repeat(3, axis=2)


def shortened(text: str, width: int, face: str = PLAIN) -> str:
    """Return a text on one line that is at most `width` pixels long."""
    text, font = " ".join(text.split()), _font(face)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1].rstrip()
    return f"{text}…"


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{face}.ttf", FONT_SIZE)


def tile(images: Pixels, num_columns: int, ground: int = GREY) -> Pixels:
    """Arrange images (N, height, width, 3) row by row, with a gap around each."""
    count, height, width, _ = images.shape
    num_rows = -(-count // num_columns)
    step_y, step_x = height + GAP, width + GAP
    sheet = np.full((num_rows * step_y + GAP, num_columns * step_x + GAP, 3), ground, np.uint8)
    for index, image in enumerate(images):
        top, left = index // num_columns * step_y + GAP, index % num_columns * step_x + GAP
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_png(path: Path, pixels: Pixels) -> None:
    """Write uint8 (height, width, 3), as grey where that loses nothing.

    No metadata is written, so that equal pixels are equal files.
    """
    is_grey = (pixels == pixels[..., :1]).all()
    Image.fromarray(pixels[..., 0] if is_grey else pixels).save(path, format="PNG", optimize=True)


def save_curves(path: Path, stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot the training and held-out values of each stage's rows of metrics."""
    figure = Figure(figsize=(5.5 * len(stages), 3.6), layout="constrained")
    for column, (name, rows) in enumerate(stages.items()):
        axes = figure.add_subplot(1, len(stages), column + 1)
        train = [row for row in rows if row["split"] == "train"]
        held_out = [row for row in rows if row["split"] == "held_out"]
        measured = next(k for k in ("bit_loss", "l2") if k in held_out[0])
        trained = measured if train and measured in train[0] else "loss"
        axes.plot(*_points(train, trained), color="0.7", linewidth=0.8, label="training batch")
        axes.plot(*_points(held_out, measured), color="tab:blue", marker=".", label="held out")
        axes.set(title=name, xlabel="step", ylabel=measured.replace("_", " "), yscale="log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False)
    save_figure(path, figure)


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    rows = list(rows)
    return [row["step"] for row in rows], [row[name] for row in rows]


def save_heatmaps(
    path: Path,
    tables: Mapping[str, NDArray[np.float64]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    axis_names: tuple[str, str],
) -> None:
    """Draw tables (rows, columns) side by side, each cell with its number."""
    figure = Figure(figsize=(4.6 * len(tables), 3.8), layout="constrained")
    for column, (title, table) in enumerate(tables.items()):
        axes = figure.add_subplot(1, len(tables), column + 1)
        axes.imshow(table, cmap="viridis", aspect="auto")
        middle = (table.min() + table.max()) / 2
        for (y, x), value in np.ndenumerate(table):
            colour = "black" if value > middle else "white"
            axes.text(x, y, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(column_labels)), column_labels)
        axes.set_yticks(range(len(row_labels)), row_labels)
        axes.set(title=title, ylabel=axis_names[0], xlabel=axis_names[1])
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, without the version that would make equal figures differ."""
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
