"""Facts of the encoders: lossless PNGs that say how they were made."""

import io

import numpy as np
import pytest
from PIL import Image

from model.class_labels import ClassLabel
from model.config import ImageRequest, SamplingConfig
from service import __version__
from service.images import contact_sheet, encode, provenance
from service.jobs import OutputFormat

SAMPLING = SamplingConfig(
    guidance_scale=5, temperature=2.5, unmask_schedule=(2, 2, 5, 7), order="random"
)
LABEL = ClassLabel(3, None, ("Größe 3 ☃",))
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


def test_a_png_says_how_it_was_made() -> None:
    """Text chunks carry model, revision, class, settings, seed, order and version."""
    request = ImageRequest(class_id=3, seed=42, sampling=SAMPLING)
    text = provenance("bar-b", "abc123", LABEL, request)
    image = Image.open(io.BytesIO(encode(PIXELS, "png", text)))
    image.load()
    assert {
        "Software": f"bar-serve {__version__}",
        "bar:version": __version__,
        "bar:model": "bar-b",
        "bar:revision": "abc123",
        "bar:class_id": "3",
        "bar:class_name": "Größe 3 ☃",
        "bar:seed": "42",
        "bar:guidance_scale": "5.0",
        "bar:temperature": "2.5",
        "bar:unmask_schedule": "[2, 2, 5, 7]",
        "bar:order": "random",
    } == image.info


def test_encoding_is_a_function() -> None:
    """The same pixels and texts give the same bytes."""
    assert encode(PIXELS, "png", {"a": "b"}) == encode(PIXELS.copy(), "png", {"a": "b"})


def test_a_contact_sheet_is_as_square_as_its_images_allow() -> None:
    """Five images stand in two rows of three, in reading order, the last place white."""
    images = np.stack([np.full((4, 6, 3), 10 * n, np.uint8) for n in range(5)])
    sheet = contact_sheet(images, gap=2)
    assert (10, 22, 3) == sheet.shape
    corners = [sheet[top, left, 0] for top in (0, 6) for left in (0, 8, 16)]
    assert [0, 10, 20, 30, 40, 255] == corners
    assert 255 == sheet[4, 0, 0] == sheet[0, 6, 0]
