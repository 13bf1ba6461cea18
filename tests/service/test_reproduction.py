"""Facts of reproduction: what cannot be made again is refused, and no difference is missed."""

from dataclasses import replace

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.images import contact_sheet, encode
from service.provenance import Provenance
from service.reproduction import Comparison, Original, compare
from service.settings import Settings
from service.submission import Asking, make_job
from tests.service.fakes import fake_info, fake_pixels
from tests.service.harness import expected_png
from tests.service.png_parts import with_text

INFO = fake_info()
SETTINGS = Settings.load({}, {})
PNG = expected_png(7, 42, guidance_scale=4.5, temperature=0.5, order="random")


def test_the_request_asks_for_the_same_image() -> None:
    """Class, seed and every setting come from the PNG, none from the model's defaults."""
    original = Original.read(PNG)
    job = make_job(original.request_to(INFO), INFO, SETTINGS, Asking())
    assert [original.record.image] == list(job.images)
    assert (4.5, 0.5, "random") == (
        job.images[0].sampling.guidance_scale,
        job.images[0].sampling.temperature,
        job.images[0].sampling.order,
    )
    assert np.array_equal(fake_pixels(job.images[0]), original.pixels_of(INFO))


def test_a_contact_sheet_asks_for_all_its_images() -> None:
    """Three seeds make three images, and the sheet has the size of three."""
    image = Original.read(PNG).record.image
    images = [replace(image, seed=image.seed + i) for i in range(3)]
    sheet = contact_sheet(np.stack([fake_pixels(each) for each in images]))
    content = encode(sheet, "png", Provenance.of(INFO, image, 3).texts())
    original = Original.read(content)
    assert images == list(make_job(original.request_to(INFO), INFO, SETTINGS, Asking()).images)
    assert np.array_equal(sheet, original.pixels_of(INFO))


def test_another_revision_is_refused() -> None:
    """Other weights make other images; both revisions are named."""
    content = with_text(PNG, "bar:revision", "feedface")
    with pytest.raises(
        InvalidRequest, match=r"revision feedface .* revision 0123456789ab"
    ) as error:
        Original.read(content).request_to(INFO)
    assert "revision_mismatch" == error.value.code


def test_an_unknown_revision_is_not_compared() -> None:
    """Where only the workers have the model's files, theirs is looked at afterwards."""
    assert Original.read(PNG).request_to(replace(INFO, revision="")).seed == 42


@pytest.mark.parametrize(("keyword", "text", "message"), [
    ("bar:class_id", "10", "class_id must be an integer between 0 and 9, got 10"),
    ("bar:class_id", "-1", "class_id must be an integer between 0 and 9, got -1"),
    ("bar:unmask_schedule", "[8, 9]", "sums to 17, but this model has 16"),
])  # fmt: skip
def test_what_the_model_cannot_draw_is_refused(keyword: str, text: str, message: str) -> None:
    """A class or a schedule of another model is refused with the number that does not fit."""
    with pytest.raises(InvalidRequest, match=message):
        Original.read(with_text(PNG, keyword, text)).request_to(INFO)


def test_another_size_is_refused() -> None:
    """A resized image has no pixels to compare."""
    texts = Original.read(PNG).record.texts()
    content = encode(np.zeros((64, 64, 3), np.uint8), "png", texts)
    with pytest.raises(InvalidRequest, match="64 × 64 pixels, and was 32 × 32"):
        Original.read(content).pixels_of(INFO)


def test_every_difference_counts() -> None:
    """A pixel differs if one of its colours does, by one or by all; upwards like downwards."""
    original = np.full((4, 5, 3), 100, np.uint8)
    again = original.copy()
    assert Comparison(num_pixels=20, differing_pixels=0, largest_difference=0) == compare(
        original, again
    )
    again[0, 0, 2], again[3, 4], again[1, 1, 0] = 101, 0, 250
    comparison = compare(original, again)
    assert Comparison(num_pixels=20, differing_pixels=3, largest_difference=150) == comparison
    assert not comparison.matched
    assert comparison == compare(again, original)
