"""PNGs taken apart into chunks and put together again, for tests that change them."""

import zlib
from collections.abc import Iterable

from service.png_reader import SIGNATURE

Chunk = tuple[bytes, bytes]  # type and data


def take_apart(content: bytes) -> list[Chunk]:
    """Return the chunks of a sound PNG."""
    chunks, offset = [], len(SIGNATURE)
    while offset < len(content):
        end = offset + 8 + int.from_bytes(content[offset : offset + 4])
        chunks.append((content[offset + 4 : offset + 8], content[offset + 8 : end]))
        offset = end + 4
    return chunks


def put_together(chunks: Iterable[Chunk]) -> bytes:
    """Return a file of these chunks, with lengths and checksums that are right."""
    parts = [SIGNATURE]
    for kind, data in chunks:
        parts += [len(data).to_bytes(4), kind, data, zlib.crc32(kind + data).to_bytes(4)]
    return b"".join(parts)


def with_text(content: bytes, keyword: str, text: str) -> bytes:
    """Return a PNG whose text chunk of `keyword` holds `text` instead; added if it has none."""
    chunk = (b"tEXt", f"{keyword}\0{text}".encode("latin-1"))
    header, *rest = take_apart(content)
    others = [part for part in rest if not part[1].startswith(f"{keyword}\0".encode())]
    return put_together([header, chunk, *others])
