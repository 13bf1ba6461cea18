"""How long a client will wait for its answer, from its Prefer header (RFC 7240).

`respond-async` asks for an answer at once, `wait=N` for one within N seconds; without either the
client waits for its images. What cannot be read is ignored, as the standard demands.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Preference:
    """What was preferred; `applied` says so in the answer."""

    wait_s: float | None = None  # after which to answer 202; None waits for the end
    applied: str = ""

    @property
    def is_async(self) -> bool:
        """Whether the client may be answered before its images are made."""
        return self.wait_s is not None


def read_preference(header: str | None) -> Preference:
    """Return what `header` prefers: `wait=N` bounds the wait, `respond-async` alone means none."""
    asked = dict(reversed(list(_preferences(header or ""))))  # of two alike the first counts
    wait = asked.get("wait", "")
    if wait.isascii() and wait.isdecimal() and len(wait) <= 6:
        applied = f"wait={int(wait)}"
        if "respond-async" in asked:
            applied = f"respond-async, {applied}"
        return Preference(float(wait), applied)
    if "respond-async" in asked:
        return Preference(0.0, "respond-async")
    return Preference()


def _preferences(header: str) -> Iterator[tuple[str, str]]:
    for part in header.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        yield name.strip().lower(), value.strip().strip('"')
