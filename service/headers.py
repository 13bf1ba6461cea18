"""Request headers that several routes read, as the OpenAPI document describes them."""

from typing import Annotated

from fastapi import Header

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes a repeated request the same request, for 24 hours.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(description="`respond-async`: 202 at once; `wait=N`: 202 after N seconds (RFC 7240)."),
]
