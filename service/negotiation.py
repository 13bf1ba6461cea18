"""Which representation of a generation the client asked for, from its Accept header (RFC 9110 §12).

JSON unless something else is preferred to it: a client that accepts everything, as most do without
thinking, gets JSON.
"""

from collections.abc import Mapping
from typing import Literal

from service.errors import InvalidRequest, NotAcceptable
from service.images import MEDIA_TYPES
from service.jobs import OutputFormat

Answer = OutputFormat | Literal["json", "events"]

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
OFFERED: dict[Answer, str] = {
    "json": JSON_TYPE,
    "png": MEDIA_TYPES["png"],
    "jpeg": MEDIA_TYPES["jpeg"],
    "webp": MEDIA_TYPES["webp"],
    "events": EVENTS_TYPE,
}


def choose_answer(
    accept: str | None,
    preferred: OutputFormat | None,
    offered: Mapping[Answer, str] = OFFERED,
) -> Answer:
    """Return which of those `offered`, each with its media type, `accept` asks for.

    `preferred` wins among image types that are accepted alike. Raises: NotAcceptable if `accept`
    allows nothing that there is, InvalidRequest if it rules out what is preferred.
    """
    qualities = _qualities(accept) if accept and accept.strip() else {"*/*": 1.0}
    # The first wins a draw: JSON, then what is preferred.
    ranked = sorted(offered, key=lambda answer: (answer != "json", answer != preferred))
    best = max(ranked, key=lambda answer: _quality_of(offered[answer], qualities))
    if _quality_of(offered[best], qualities) <= 0:
        raise NotAcceptable(f"the Accept header allows none of {', '.join(offered.values())}")
    if best in MEDIA_TYPES and preferred and best != preferred:
        raise InvalidRequest(
            f"output_format is {preferred}, but the Accept header asks for {offered[best]}",
            param="output_format",
        )
    return best


def raw_format(answer: Answer) -> OutputFormat | None:
    """Return the image format of an answer that is an image's bytes and nothing else."""
    match answer:
        case "png" | "jpeg" | "webp":
            return answer
        case _:
            return None


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
