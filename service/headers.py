"""Request headers that several routes read, as the OpenAPI document describes them.

A header that is a list may come in several lines, and a proxy may write them as one: both mean the
same (RFC 9110 §5.3), and so they are read joined.
"""

from typing import Annotated

from fastapi import Depends, Header, Request

from service.preferences import Preference, read_preference

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes a repeated request the same request, for 24 hours.",
    ),
]


def joined(request: Request, name: str) -> str | None:
    """Return a header that is a list, with all of its lines; None if there is none."""
    return ", ".join(request.headers.getlist(name)) or None


def _preference(
    request: Request,
    prefer: Annotated[  # noqa: ARG001 - for the document: it would be one line of several
        str | None,
        Header(
            description="`respond-async`: 202 at once; `wait=N`: 202 after N seconds (RFC 7240)."
        ),
    ] = None,
) -> Preference:
    return read_preference(joined(request, "prefer"))


Preferred = Annotated[Preference, Depends(_preference)]
