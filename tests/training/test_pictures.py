"""Grids and curves on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.pictures import (
    GAP,
    GREY,
    MIN_CELL,
    STRIP_HEIGHT,
    labelled_sheet,
    save_curves,
    save_heatmaps,
    save_pairs,
    shortened,
    tile,
)


def numbered(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Make 3×5 images, each of one grey level: its number."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((3, 5, 3), np.uint8)


def test_tiles_stand_row_by_row() -> None:
    """Image 4 of three columns stands in the second row and column; empty places stay grey."""
    sheet = tile(numbered(5), num_columns=3)
    assert (2 * (3 + GAP) + GAP, 3 * (5 + GAP) + GAP, 3) == sheet.shape
    top, left = GAP + 3 + GAP, GAP + 5 + GAP
    assert (sheet[top : top + 3, left : left + 5] == 4).all()
    assert (sheet[top:, left + 5 :] == GREY).all()


def test_pairs_stand_one_above_the_other(tmp_path: Path) -> None:
    """Each row of the first set is followed by what belongs to it."""
    path = tmp_path / "pairs.png"
    save_pairs(path, numbered(4), 100 + numbered(4), num_columns=2)
    column = np.asarray(Image.open(path))[:, GAP]
    assert [0, 100, 2, 102] == [int(column[GAP + row * (3 + GAP)]) for row in range(4)]


def test_figures_are_reproducible(tmp_path: Path) -> None:
    """The same numbers give the same file, byte for byte: nothing of the day stands in it."""
    rows = [
        {"step": step, "split": split, "loss": 1 / (1 + step), "bit_loss": 2 / (1 + step)}
        for step in range(4)
        for split in ("train", "held_out")
    ]
    table = np.arange(6.0).reshape(2, 3)
    for name in ("a", "b"):
        save_curves(tmp_path / f"curves-{name}.png", {"generator": rows})
        save_heatmaps(
            tmp_path / f"map-{name}.png",
            {"t": table},
            ["1", "2"],
            ["x", "y", "z"],
            ("down", "across"),
        )
    for kind in ("curves", "map"):
        first, second = ((tmp_path / f"{kind}-{name}.png").read_bytes() for name in ("a", "b"))
        assert first == second
        assert first.startswith(b"\x89PNG")


def test_names_stand_above_their_columns() -> None:
    """Small images are enlarged until names fit; each column's head has ink of its own."""
    images = np.full((4, 8, 8, 3), 200, np.uint8)
    sheet = labelled_sheet({"raster": images, "random": images}, 2, ["one", ""])
    cell = MIN_CELL + GAP
    assert (2 * (2 * STRIP_HEIGHT + 2 * cell + GAP), 2 * cell + GAP, 3) == sheet.shape
    heads = sheet[STRIP_HEIGHT : 2 * STRIP_HEIGHT]
    assert heads[:, :cell].min() < 100 < heads[:, cell:].min()


def test_long_names_are_shortened() -> None:
    """A name keeps to its width, on one line; what fits stays as it is."""
    assert "one two" == shortened("one\n two", 200)
    name = shortened("a very long name of a class", 64)
    assert name.endswith("…")
    assert "a very long".startswith(name[:-1])
    assert "…" == shortened("name", 1)
