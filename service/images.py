"""Pixels to bytes: PNG, JPEG and WebP, the PNGs with their provenance written into them.

Called by the worker, in threads beside the running steps, and by `bar generate`. PNG trades a
little size for speed: zlib level 1 with run-length matching is several times faster than the
default on generated images, and no larger.

The provenance says how to make the image again and nothing about who asked for it.
"""

import io
import json
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.class_labels import ClassLabel
from model.config import ImageRequest
from service import __version__
from service.jobs import OutputFormat

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
LOSSY_QUALITY = 92

Pixels = NDArray[np.uint8]  # (h, w, 3)


def encode(pixels: Pixels, output_format: OutputFormat, provenance: Mapping[str, str]) -> bytes:
    """Encode one image, uint8 (h, w, 3); `provenance` becomes text chunks of a PNG.

    The same pixels and provenance give the same bytes.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if output_format == "png":
        chunks = PngInfo()
        for keyword, text in provenance.items():
            chunks.add_text(keyword, text)
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=1, compress_type=zlib.Z_RLE)
    elif output_format == "jpeg":
        image.save(buffer, "JPEG", quality=LOSSY_QUALITY, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=LOSSY_QUALITY, method=2)
    return buffer.getvalue()


def provenance(
    model: str, revision: str, label: ClassLabel, request: ImageRequest
) -> dict[str, str]:
    """Describe how an image came about, as keywords and texts of PNG chunks."""
    sampling = request.sampling
    return {
        "Software": f"bar-serve {__version__}",
        "bar:version": __version__,
        "bar:model": model,
        "bar:revision": revision,
        "bar:class_id": str(label.index),
        "bar:class_name": label.name,
        "bar:seed": str(request.seed),
        "bar:guidance_scale": repr(float(sampling.guidance_scale)),
        "bar:temperature": repr(float(sampling.temperature)),
        "bar:unmask_schedule": json.dumps(sampling.unmask_schedule),
        "bar:order": sampling.order,
    }


def contact_sheet(images: Pixels, gap: int = 2) -> Pixels:
    """Lay out images, uint8 (n, h, w, 3), in a grid as square as n allows, white between them."""
    num_images, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(num_images)))
    rows = -(-num_images // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
