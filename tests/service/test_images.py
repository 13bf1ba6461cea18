"""Facts of the encoders: lossless PNGs that say how they were made."""

import io

import numpy as np
import pytest
from PIL import Image

from service.images import contact_sheet, encode, sheet_size
from service.jobs import OutputFormat

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_a_png_holds_the_exact_pixels() -> None:
    """PNG is lossless, in height, width and every channel."""
    decoded = np.asarray(Image.open(io.BytesIO(encode(PIXELS, "png", {}))))
    assert np.array_equal(PIXELS, decoded)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_lossy_image_resembles_the_pixels(output_format: OutputFormat) -> None:
    """A smooth image survives lossy encoding with little error."""
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    image = Image.open(io.BytesIO(encode(smooth.copy(), output_format, {})))
    assert output_format.upper() == image.format
    assert np.abs(np.asarray(image).astype(int) - smooth).mean() < 2


def test_encoding_is_a_function() -> None:
    """The same pixels and texts give the same bytes."""
    assert encode(PIXELS, "png", {"a": "b"}) == encode(PIXELS.copy(), "png", {"a": "b"})


def test_a_contact_sheet_is_as_square_as_its_images_allow() -> None:
    """Five images stand in two rows of three, in reading order, the last place white."""
    images = np.stack([np.full((4, 4, 3), 10 * n, np.uint8) for n in range(5)])
    sheet = contact_sheet(images)
    assert (10, 16, 3) == sheet.shape
    assert (16, 10) == sheet_size(5, 4)
    corners = [sheet[top, left, 0] for top in (0, 6) for left in (0, 6, 12)]
    assert [0, 10, 20, 30, 40, 255] == corners
    assert 255 == sheet[4, 0, 0] == sheet[0, 4, 0]


def test_a_contact_sheet_of_one_image_is_that_image() -> None:
    """A single image gets no border."""
    assert (7, 7) == sheet_size(1, 7)
    assert np.array_equal(PIXELS[:16, :16], contact_sheet(PIXELS[None, :16, :16]))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_is_that_of_lossy_formats(kind: OutputFormat) -> None:
    """A lower quality is smaller; a PNG is what it is."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sizes = [len(encode(pixels, kind, {}, quality)) for quality in (0, 50, None, 100)]
    assert sorted(sizes) == sizes
    assert 4 == len(set(sizes))
    assert encode(pixels, "png", {}) == encode(pixels, "png", {}, 5)
