"""Sample sheets in the report."""

import base64
import io
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.made_up_run import write_sheet
from training.report_sheets import MAX_SHEET_BYTES, MAX_SHEETS, Sheet, Sheets, read_sheet


def content_of(sheet: Sheet) -> bytes:
    """Decode a data address."""
    return base64.b64decode(sheet.address.partition("base64,")[2])


def test_a_large_sheet_becomes_smaller(tmp_path: Path) -> None:
    """Noise of a million pixels fits all the same; the page knows the sheet's own size."""
    path = tmp_path / "step-00000007.png"
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    Image.fromarray(noise).save(path)
    sheet = read_sheet(path, 7)
    assert path.stat().st_size > MAX_SHEET_BYTES >= len(content_of(sheet))
    assert (7, 1000, 1000) == (sheet.step, sheet.width, sheet.height)
    with Image.open(io.BytesIO(content_of(sheet))) as image:
        assert ("WEBP", image.width) == (image.format, image.height)


def test_a_small_sheet_is_kept_as_it_is(tmp_path: Path) -> None:
    """What is small enough is the file, byte for byte."""
    path = write_sheet(tmp_path, 3)
    assert path.read_bytes() == content_of(read_sheet(path, 3))


def test_of_many_sheets_some_are_shown(tmp_path: Path) -> None:
    """Of a hundred sheets twelve stay, from the first to the last, evenly."""
    for step in range(0, 1000, 10):
        write_sheet(tmp_path, step)
    steps = [sheet.step for sheet in Sheets(tmp_path).chosen(990)]
    assert MAX_SHEETS == len(steps)
    assert (0, 990) == (steps[0], steps[-1])
    assert {90} == {after - before for before, after in itertools.pairwise(steps)}
    assert steps == sorted(steps)


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    """A sheet is encoded once; one that was drawn again is read again."""
    sheets = Sheets(tmp_path)
    for step in (0, 1):
        write_sheet(tmp_path, step)
    first = sheets.chosen(1)
    path = write_sheet(tmp_path, 1, size=(10, 10))
    os.utime(path, ns=(1, 1))
    second = sheets.chosen(1)
    assert first[0] is second[0]
    assert (80, 10) == (first[1].width, second[1].width)
