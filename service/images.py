"""Pixels to bytes: PNG, JPEG and WebP, the PNGs with texts in them.

Called by the worker, in threads beside the running steps, and by `bar generate`. PNG trades a
little size for speed: zlib level 1 with run-length matching is several times faster than the
default on generated images, and no larger.

The texts are the image's provenance: `provenance.py` says which they are.
"""

import io
import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.jobs import OutputFormat

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
LOSSY_QUALITY = 92
GAP = 2  # pixels between the images of a contact sheet

Pixels = NDArray[np.uint8]  # (h, w, 3)


def encode(
    pixels: Pixels,
    output_format: OutputFormat,
    texts: Mapping[str, str],
    quality: int | None = None,
) -> bytes:
    """Encode one image, uint8 (h, w, 3); `texts`, by keyword, become text chunks of a PNG, and
    `quality`, 0 to 100, is that of the others.

    The same pixels and texts give the same bytes.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    quality = LOSSY_QUALITY if quality is None else quality
    if output_format == "png":
        chunks = PngInfo()
        for keyword, text in texts.items():
            chunks.add_text(keyword, text)
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=1, compress_type=zlib.Z_RLE)
    elif output_format == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def contact_sheet(images: Pixels) -> Pixels:
    """Lay out images, uint8 (n, s, s, 3), in a grid as square as n allows, white between them."""
    num_images, size = images.shape[:2]
    columns = _columns(num_images)
    width, height = sheet_size(num_images, size)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (size + GAP), index % columns * (size + GAP)
        sheet[top : top + size, left : left + size] = image
    return sheet


def sheet_size(num_images: int, image_size: int) -> tuple[int, int]:
    """Return width and height of a contact sheet; one image alone is no larger than itself."""
    columns = _columns(num_images)
    rows = -(-num_images // columns)
    return columns * (image_size + GAP) - GAP, rows * (image_size + GAP) - GAP


def _columns(num_images: int) -> int:
    return math.ceil(math.sqrt(num_images))
