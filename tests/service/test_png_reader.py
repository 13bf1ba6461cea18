"""Facts of the PNG reader: whatever arrives is read or refused, and costs what it weighs."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.errors import InvalidRequest
from service.images import encode
from service.png_reader import MAX_CHUNKS, MAX_TEXT_BYTES, SIGNATURE, read_png
from tests.service.png_parts import Chunk, put_together, take_apart

PREFIX = "bar:"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
TEXTS = {"bar:a": "1", "bar:b": "Größe 3 ☃", "Comment": "not asked for"}
PNG = encode(PIXELS, "png", TEXTS)
HEADER, *_, DATA, END = take_apart(PNG)


def saved(image: Image.Image, **options: object) -> bytes:
    """Return what Pillow makes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def header(width: int = 24, height: int = 16, depth: int = 8, colour_type: int = 2) -> Chunk:
    """Return a header chunk."""
    values = width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour_type, 0, 0, 0])
    return b"IHDR", values


def test_pixels_and_asked_texts_are_read() -> None:
    """Every pixel comes back, and every text whose keyword begins as asked, whatever its script."""
    png = read_png(PNG, PREFIX)
    assert (24, 16) == (png.width, png.height)
    assert {"bar:a": "1", "bar:b": "Größe 3 ☃"} == png.texts
    assert np.array_equal(PIXELS, png.pixels(24, 16))


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_an_image_that_was_made_smaller_without_loss_is_read(mode: str) -> None:
    """Tools that compress PNGs store grey or few colours as such; the pixels are the same."""
    few = Image.fromarray(PIXELS).convert("L").point(lambda value: 255 * (value > 99))
    png = read_png(saved(few.convert(mode)), PREFIX)
    assert np.array_equal(np.asarray(few.convert("RGB")), png.pixels(24, 16))


def test_texts_behind_the_image_are_read_too() -> None:
    """Tools may move text chunks: what counts is that they are there."""
    first, *texts, data, end = take_apart(PNG)
    moved = put_together([first, data, *texts, end])
    assert read_png(PNG, PREFIX).texts == read_png(moved, PREFIX).texts


def with_compressed_text() -> bytes:
    """Return a PNG with a text of 50 MB in a few kilobytes."""
    info = PngInfo()
    info.add_text("bar:a", "1" * 50_000_000, zip=True)
    return saved(Image.fromarray(PIXELS), pnginfo=info)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a PNG"),
    (b"GIF89a", "not a PNG"),
    (encode(PIXELS, "jpeg", {}), "a JPEG file, which holds no exact pixels"),
    (encode(PIXELS, "webp", {}), "a WebP file, which holds no exact pixels"),
    (SIGNATURE, "cut short"),
    (PNG[:-1], "cut short"),
    (PNG[:100] + b"\0" + PNG[101:], "a checksum is wrong, at byte"),
    (PNG + b"more", "4 bytes follow the end"),
    (put_together([DATA, END]), "does not begin with one header"),
    (put_together([HEADER, HEADER, DATA, END]), "does not begin with one header"),
    (put_together([(b"IHDR", b"short"), DATA, END]), "does not begin with one header"),
    (put_together([header(depth=16), DATA, END]), "16 bits per colour"),
    (put_together([header(colour_type=6), DATA, END]), "transparency"),
    (put_together([HEADER, (b"tRNS", bytes(6)), DATA, END]), "transparency"),
    (put_together([HEADER, *[(b"abCd", b"")] * MAX_CHUNKS, END]), "more than 4096 chunks"),
    (put_together([HEADER, (b"tEXt", b"bar:a\0" + bytes(MAX_TEXT_BYTES)), END]), "may have 65536"),
    (put_together([HEADER, (b"iTXt", b"bar:a\0\1\0\0\0" + zlib.compress(b"1")), END]),
     "compressed or translated"),
    (put_together([HEADER, (b"iTXt", b"bar:a\0\0\0de\0\0" + b"1"), END]),
     "compressed or translated"),
    (put_together([HEADER, (b"iTXt", b"bar:a\0\0\0\0\0\xff"), END]), "not UTF-8"),
    (put_together([HEADER, (b"tEXt", b"bar:a\0001"), (b"tEXt", b"bar:a\0001"), END]), "same keyw"),
    (put_together([HEADER, (b"tEXt", b"bar:a\0001"), (b"iTXt", b"bar:a\0\0\0\0\0002"), END]),
     "same keyword"),
])  # fmt: skip
def test_what_is_wrong_is_said(content: bytes, message: str) -> None:
    """Each defect is refused in words of its own, and as the client's fault."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_png(content, PREFIX)
    assert (400, "invalid_png") == (caught.value.status, caught.value.code)


@pytest.mark.parametrize(("chunks", "message"), [
    ([header(width=25), DATA, END], "25 × 16 pixels, and was 24 × 16"),
    ([HEADER, END], "damaged"),
    ([header(colour_type=3), (b"PLTE", bytes(769)), DATA, END], "damaged"),
    ([header(depth=3), DATA, END], "damaged"),
    ([HEADER, (b"IDAT", DATA[1][:-400]), END], "damaged"),
    ([HEADER, (b"IDAT", b"\0" * 50), END], "damaged"),
    ([HEADER, (b"IDAT", zlib.compress(b"\7" * 2000)), END], "damaged"),
])  # fmt: skip
def test_image_data_that_does_not_hold_the_image_is_refused(
    chunks: list[Chunk], message: str
) -> None:
    """A PNG of sound structure may still have another size, or no image in it."""
    png = read_png(put_together(chunks), PREFIX)
    with pytest.raises(InvalidRequest, match=message):
        png.pixels(24, 16)


def test_a_bomb_does_not_go_off() -> None:
    """Texts that grow a thousandfold, a vast size, and image data that goes on for ever cost no
    more memory than a small image."""
    endless = zlib.compress(bytes(100_000_000), 9)
    vast = put_together([header(2**31 - 1, 2**31 - 1), (b"IDAT", endless), END])
    long = put_together([HEADER, (b"iCCP", b"x\0\0" + endless), (b"zTXt", b"x\0\0" + endless),
                         (b"IDAT", endless), END])  # fmt: skip
    text = with_compressed_text()
    read_png(PNG, PREFIX).pixels(24, 16)  # loads what Pillow loads late
    tracemalloc.start()
    for content in (text, vast):
        with pytest.raises(InvalidRequest):
            read_png(content, PREFIX).pixels(24, 16)
    assert not read_png(long, PREFIX).pixels(24, 16).any()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def check_any(content: bytes) -> None:
    """Pass if `content` is read or refused; anything else that is raised fails the test."""
    try:
        png = read_png(content, PREFIX)
        pixels = png.pixels(24, 16)
    except InvalidRequest as error:
        assert len(str(error)) < 200
    else:
        assert (16, 24, 3) == pixels.shape


FUZZ = settings(max_examples=300, deadline=None, derandomize=True)


@FUZZ
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(content: bytes, is_signed: bool) -> None:
    """No bytes, with or without a PNG's first ones, raise anything but InvalidRequest."""
    check_any(SIGNATURE * is_signed + content)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a PNG whose chunks were removed, repeated, moved, cut or overwritten."""
    chunks = take_apart(PNG)
    kinds = st.sampled_from(
        [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"tEXt", b"iTXt", b"zTXt"]
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(chunks)))
        kind, data = chunks.pop(place) if place < len(chunks) else (draw(kinds), b"bar:c\0")
        start = draw(st.integers(0, len(data)))
        patch = draw(st.binary(max_size=20))
        shift = draw(st.sampled_from([0, len(patch), len(data)]))
        patched = data[:start] + patch + data[start + shift :]
        repeated = draw(st.lists(st.sampled_from([data, patched]), max_size=2))
        target = draw(st.integers(0, len(chunks)))
        chunks[target:target] = [(kind, each) for each in repeated]
    return put_together(chunks)


@FUZZ
@given(mutated())
def test_any_changed_png_is_read_or_refused(content: bytes) -> None:
    """No change to the chunks of a real PNG raises anything but InvalidRequest."""
    check_any(content)


@FUZZ
@given(st.data())
def test_any_changed_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """Bytes overwritten in a real PNG, checksums and all, are refused like the rest."""
    content = bytearray(PNG)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_any(bytes(content))
