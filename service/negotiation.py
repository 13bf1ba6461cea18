"""Which representation of a generation the client asked for, from its Accept header (RFC 9110 §12).

JSON unless an image type is preferred to it: a client that accepts everything, as most do without
thinking, gets JSON.
"""

from service.errors import InvalidRequest, NotAcceptable
from service.images import MEDIA_TYPES
from service.jobs import OutputFormat

JSON_TYPE = "application/json"
OFFERED = (JSON_TYPE, *MEDIA_TYPES.values())


def image_format_accepted(
    accept: str | None, preferred: OutputFormat | None
) -> OutputFormat | None:
    """Return the image format whose raw bytes `accept` asks for, None where it wants JSON.

    `preferred` wins among image types that are accepted alike. Raises: NotAcceptable if `accept`
    allows nothing that there is, InvalidRequest if it rules out what is preferred.
    """
    qualities = _qualities(accept) if accept and accept.strip() else {"*/*": 1.0}
    formats = sorted(MEDIA_TYPES, key=lambda name: name != preferred)
    offered: list[OutputFormat | None] = [None, *formats]  # None, JSON, wins a draw
    best = max(offered, key=lambda name: _quality_of(_media_type(name), qualities))
    if _quality_of(_media_type(best), qualities) <= 0:
        raise NotAcceptable(f"the Accept header allows none of {', '.join(OFFERED)}")
    if best and preferred and best != preferred:
        raise InvalidRequest(
            f"output_format is {preferred}, but the Accept header asks for {_media_type(best)}",
            param="output_format",
        )
    return best


def _media_type(name: OutputFormat | None) -> str:
    return MEDIA_TYPES[name] if name else JSON_TYPE


def _qualities(accept: str) -> dict[str, float]:
    """Read `type/subtype;q=0.5, …` into a quality for each range; an unreadable q counts as 1."""
    qualities = {}
    for part in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        is_number = quality.replace(".", "", 1).isdecimal() and quality.isascii()
        qualities[media_range] = min(float(quality), 1.0) if is_number else 1.0
    return qualities


def _quality_of(media_type: str, qualities: dict[str, float]) -> float:
    """Return the quality of the most specific range that covers `media_type`."""
    family = media_type.partition("/")[0] + "/*"
    for media_range in (media_type, family, "*/*"):
        if media_range in qualities:
            return qualities[media_range]
    return 0.0
