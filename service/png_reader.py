"""Reads PNGs that strangers send: texts of known keywords, and pixels of a known size.

The first to see what comes to be made again (`reproduction`); whatever arrives gives a value or an
InvalidRequest. It walks over the chunks itself, because the image library decompresses texts that
nobody asked for and keeps the last of two that contradict each other. The library then sees
nothing but header, palette and image data, and only once the size is the one that is expected: a
few bytes that claim to be a vast image cost nothing.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from service.errors import InvalidRequest
from service.images import Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 4096  # ten times what encoders make of the largest image
MAX_TEXT_BYTES = 65536
COLOUR_TYPES = (0, 2, 3)  # grey, RGB, palette: those without transparency


@dataclass(frozen=True)
class Png:
    """A PNG of sound structure, its pixels not decoded yet."""

    width: int
    height: int
    texts: Mapping[str, str]  # of the keywords that were asked for
    _image: bytes  # the same file, of critical chunks alone

    def pixels(self, width: int, height: int) -> Pixels:
        """Return the pixels, uint8 (h, w, 3), of a PNG that must be `width` × `height`.

        Raises: InvalidRequest for another size, and for image data that is damaged.
        """
        if (self.width, self.height) != (width, height):
            raise _refusal(
                f"the image is {self.width} × {self.height} pixels, and was {width} × {height} "
                "when it was made"
            )
        try:
            with Image.open(io.BytesIO(self._image), formats=["PNG"]) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise _refusal("the image data of the PNG is damaged") from None


def read_png(content: bytes, keyword_prefix: str) -> Png:
    """Read the size of a PNG, and its texts whose keyword begins with `keyword_prefix`.

    Raises: InvalidRequest says what is wrong with it.
    """
    if not content.startswith(SIGNATURE):
        raise _refusal(_what_else(content))
    chunks = list(_chunks(content))
    width, height = _size(chunks)
    return Png(width, height, _texts(chunks, keyword_prefix.encode()), _critical(chunks))


def _what_else(content: bytes) -> str:
    is_webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    if is_webp or content.startswith(b"\xff\xd8\xff"):
        kind = "WebP" if is_webp else "JPEG"
        return f"this is a {kind} file, which holds no exact pixels: only PNGs can be compared"
    return "this is not a PNG file"


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and data of each chunk."""
    offset, kind, left = len(SIGNATURE), b"", MAX_CHUNKS
    while kind != b"IEND":
        if not (left := left - 1):
            raise _refusal(f"the PNG has more than {MAX_CHUNKS} chunks")
        length, kind = struct.unpack(">I4s", content[offset : offset + 8].ljust(8, b"\xff"))
        end = offset + 8 + length
        if end + 4 > len(content):
            raise _refusal("the PNG is cut short")
        if zlib.crc32(content[offset + 4 : end]) != int.from_bytes(content[end : end + 4]):
            raise _refusal(f"the PNG is damaged: a checksum is wrong, at byte {offset}")
        yield kind, content[offset + 8 : end]
        offset = end + 4
    if offset < len(content):
        raise _refusal(f"{len(content) - offset} bytes follow the end of the PNG")


def _size(chunks: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """Return width and height from the header, having checked it."""
    kinds = [kind for kind, _ in chunks]
    kind, header = chunks[0]
    if kind != b"IHDR" or len(header) != 13 or kinds.count(b"IHDR") > 1:
        raise _refusal("the PNG does not begin with one header")
    width, height, depth, colour_type = struct.unpack(">IIBB", header[:10])
    if depth > 8 or colour_type not in COLOUR_TYPES or b"tRNS" in kinds:
        raise _refusal("the image has transparency or 16 bits per colour: it was changed")
    return width, height


def _texts(chunks: list[tuple[bytes, bytes]], prefix: bytes) -> dict[str, str]:
    """Return the texts of the keywords with `prefix`, each of which may stand there once."""
    texts: dict[str, str] = {}
    for kind, data in chunks:
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or not data.startswith(prefix):
            continue
        keyword, text = _text(kind, data)
        if keyword in texts:
            raise _refusal("two text chunks of the PNG have the same keyword")
        texts[keyword] = text
    return texts


def _text(kind: bytes, data: bytes) -> tuple[str, str]:
    if len(data) > MAX_TEXT_BYTES:
        raise _refusal(f"a text chunk has {len(data)} bytes, and may have {MAX_TEXT_BYTES}")
    keyword, _, text = data.partition(b"\0")
    if kind == b"tEXt":
        return keyword.decode("latin-1"), text.decode("latin-1")
    # iTXt: compression flag and method, language, translated keyword, text. One that is neither
    # compressed nor translated begins with four zeros, and no other is written here.
    if kind == b"zTXt" or not text.startswith(bytes(4)):
        raise _refusal("a text chunk is compressed or translated: it was changed")
    try:
        return keyword.decode("latin-1"), text[4:].decode()
    except UnicodeDecodeError:
        raise _refusal("a text chunk is not UTF-8") from None


def _critical(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Put the chunks together that hold the image."""
    parts = [SIGNATURE]
    for kind, data in chunks:
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            checksum = zlib.crc32(kind + data)
            parts += [len(data).to_bytes(4), kind, data, checksum.to_bytes(4)]
    return b"".join(parts)


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_png")
