"""The sample sheets of a run for its report: a few of many, each small enough, as data addresses.

Called by `report.py`. A long run leaves hundreds of sheets of several megabytes; a page must stay
one that can be mailed. Kept are the first, the last and evenly chosen ones between; one that is
large becomes a WebP, narrower until it fits.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

MAX_SHEETS = 12
MAX_SHEET_BYTES = 150_000
WIDTHS = (1600, 1200, 900, 600, 400, 250)  # pixels, tried in turn
QUALITY = 80
_NAME = re.compile(r"step-(\d+)\.png$")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sheet:
    """A picture of what a model could do at a step."""

    step: int
    address: str  # data:…
    width: int  # pixels of the sheet itself
    height: int


class Sheets:
    """Reads the sheets in a folder; those that have not changed are not encoded again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[Path, int], Sheet] = {}

    def chosen(self, last_step: int) -> list[Sheet]:
        """Return up to MAX_SHEETS sheets of steps up to `last_step`, in order."""
        there = sorted(
            (int(match[1]), path)
            for path in self.folder.glob("step-*.png")
            if (match := _NAME.search(path.name))
        )
        some = evenly([(step, path) for step, path in there if step <= last_step], MAX_SHEETS)
        keys = {(path, path.stat().st_mtime_ns): step for step, path in some}
        self._known = {
            key: self._known.get(key) or read_sheet(key[0], step) for key, step in keys.items()
        }
        return list(self._known.values())


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` items: the first, the last, and evenly chosen ones between."""
    if len(items) <= limit:
        return list(items)
    last = len(items) - 1
    return [items[round(index * last / (limit - 1))] for index in range(limit)]


def read_sheet(path: Path, step: int) -> Sheet:
    """Return a PNG as it is if it is small, else smaller."""
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        if len(content) > MAX_SHEET_BYTES:
            content, kind = _smaller(image), "webp"
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Sheet(step, address, width, height)


def _smaller(image: Image.Image) -> bytes:
    content = b""
    for width in WIDTHS:
        narrow = image
        if width < image.width:
            size = (width, max(1, round(image.height * width / image.width)))
            narrow = image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        narrow.save(buffer, format="WEBP", quality=QUALITY)
        content = buffer.getvalue()
        if len(content) <= MAX_SHEET_BYTES:
            break
    return content
