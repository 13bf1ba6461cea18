"""Facts of provenance: a PNG says all that determines its image, and is believed to the letter."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.class_labels import ClassLabels
from model.config import MAX_SEED, ImageRequest, SamplingConfig
from service import __version__
from service.errors import InvalidRequest
from service.images import encode
from service.png_reader import read_png
from service.provenance import PREFIX, Provenance, read_provenance
from tests.service.fakes import fake_info, fake_pixels

SAMPLING = SamplingConfig(
    guidance_scale=5, temperature=2.5, unmask_schedule=(2, 2, 5, 7), order="random"
)
IMAGE = ImageRequest(class_id=3, seed=42, sampling=SAMPLING)
TEXTS = {
    "bar:version": __version__,
    "bar:model": "digits",
    "bar:revision": "0123456789ab",
    "bar:class_id": "3",
    "bar:class_name": "three",
    "bar:seed": "42",
    "bar:guidance_scale": "5.0",
    "bar:temperature": "2.5",
    "bar:unmask_schedule": "[2, 2, 5, 7]",
    "bar:order": "random",
}


def test_a_png_says_how_it_was_made() -> None:
    """Text chunks carry software, model, revision, class, seed, settings and order: no more."""
    texts = Provenance.of(fake_info(), IMAGE).texts()
    with Image.open(io.BytesIO(encode(fake_pixels(IMAGE), "png", texts))) as image:
        image.load()
        found = [(key, str(text)) for key, text in image.info.items()]
    assert [("Software", f"bar-serve {__version__}"), *TEXTS.items()] == found


def test_a_contact_sheet_names_every_seed() -> None:
    """The seeds of a sheet follow one another, modulo 2³²."""
    image = ImageRequest(class_id=3, seed=MAX_SEED - 1, sampling=SAMPLING)
    record = Provenance.of(fake_info(), image, num_images=3)
    assert "4294967294, 4294967295, 0" == record.texts()["bar:seed"]
    assert record == read_provenance({**TEXTS, "bar:seed": "4294967294, 4294967295, 0"})


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw a schedule of some model."""
    return tuple(sorted(draw(st.lists(st.integers(1, 256), min_size=1, max_size=20))))


SAMPLINGS = st.builds(
    SamplingConfig,
    guidance_scale=st.floats(1, 30) | st.integers(1, 30),
    temperature=st.floats(0, 10) | st.integers(0, 10),
    unmask_schedule=schedules(),
    order=st.sampled_from(["raster", "random"]),
)
# A name may hold whatever text may: all but a NUL, and halves of characters.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
RECORDS = st.builds(
    Provenance,
    version=st.from_regex(r"[0-9A-Za-z.+]{1,40}", fullmatch=True),
    model=NAMES,
    revision=st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True),
    class_name=NAMES,
    image=st.builds(
        ImageRequest,
        class_id=st.integers(0, 10**6),
        seed=st.integers(0, MAX_SEED),
        sampling=SAMPLINGS,
    ),
    num_images=st.integers(1, 5),
)
FUZZ = settings(max_examples=200, deadline=None, derandomize=True)


@FUZZ
@given(RECORDS)
def test_what_is_written_is_read_back(record: Provenance) -> None:
    """Every record survives a PNG, whatever the script of its names and digits of its numbers."""
    png = read_png(encode(fake_pixels(IMAGE), "png", record.texts()), PREFIX)
    assert record == read_provenance(png.texts)


KEYWORDS = st.sampled_from(sorted(TEXTS))
NUMBERS = st.integers().map(str) | st.floats().map(repr) | st.lists(st.integers()).map(str)


@FUZZ
@given(st.dictionaries(KEYWORDS, NUMBERS | st.text(), max_size=3), st.booleans())
def test_any_texts_are_a_record_or_a_refusal(changes: dict[str, str], whole: bool) -> None:
    """Whatever the texts say is read or refused, and what is read says just that."""
    texts = {**TEXTS, **changes} if whole else changes
    try:
        record = read_provenance(texts)
    except InvalidRequest as error:
        assert "invalid_provenance" == error.code
    else:
        assert texts.items() <= record.texts().items()


@pytest.mark.parametrize(("keyword", "text"), [
    ("class_id", "٣"),
    ("class_id", "03"),
    ("class_id", " 3"),
    ("class_id", "3.0"),
    ("class_id", "9" * 5000),
    ("seed", ""),
    ("seed", "1_000"),
    ("seed", "7, 9"),
    ("seed", "7,8"),
    ("guidance_scale", "5"),
    ("guidance_scale", "five"),
    ("temperature", "2.50"),
    ("unmask_schedule", "2, 2, 5, 7"),
    ("unmask_schedule", "[" * 9999),
    ("order", "spiral"),
    ("revision", "main"),
    ("version", "1 or so"),
])  # fmt: skip
def test_a_value_has_one_spelling(keyword: str, text: str) -> None:
    """What bar-serve would not have written is refused, its keyword named and its text not."""
    with pytest.raises(InvalidRequest, match=f"bar:{keyword} holds what") as caught:
        read_provenance({**TEXTS, f"bar:{keyword}": text})
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(("keyword", "text", "message"), [
    ("guidance_scale", "31.0", "guidance_scale must be a number between 1 and 30, got 31.0"),
    ("guidance_scale", "nan", "got nan"),
    ("temperature", "-1.0", "temperature must be a number between 0 and 10, got -1.0"),
    ("unmask_schedule", "[7, 2]", "positive and non-decreasing"),
    ("seed", "4294967296", "seed must be an integer between 0 and 4294967295, got 4294967296"),
])  # fmt: skip
def test_a_value_out_of_bounds_is_refused(keyword: str, text: str, message: str) -> None:
    """Numbers that no request may have are refused with the bounds that they break."""
    with pytest.raises(InvalidRequest, match=message):
        read_provenance({**TEXTS, f"bar:{keyword}": text})


def test_a_missing_text_is_named() -> None:
    """A PNG from elsewhere and one that lost a text chunk are told apart."""
    with pytest.raises(InvalidRequest, match=r"not made here, .* no text chunk bar:model"):
        read_provenance({})
    without = {keyword: text for keyword, text in TEXTS.items() if keyword != "bar:order"}
    with pytest.raises(InvalidRequest, match=r"lost text chunks: bar:order$"):
        read_provenance(without)


def test_an_unknown_text_is_refused() -> None:
    """A later version may write what the image depends on and this one does not know."""
    with pytest.raises(InvalidRequest, match="a later version made the image"):
        read_provenance({**TEXTS, "bar:watermark": "1"})


def test_a_class_name_says_nothing_of_the_image() -> None:
    """The name is for people: it may be any, as the index decides."""
    labels = ClassLabels.from_names(["Größe ☃"])
    record = read_provenance({**TEXTS, "bar:class_name": labels[0].name})
    assert (3, "Größe ☃") == (record.image.class_id, record.class_name)
