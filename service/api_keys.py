"""API keys: how they are made, what is kept of them, and how one is recognised.

A key is 256 random bits behind a prefix that scanners for leaked secrets can search for. Only its
SHA-256 is kept, as JSON in a file:

    {"keys": [{"name": "alice", "sha256": "…", "created": "2026-01-31T12:00:00Z",
               "expires": "2027-01-31T00:00:00Z", "requests_per_minute": 60,
               "max_jobs": 100}]}

or as `alice=…,bob=…` in a setting. Slow, salted hashes protect secrets that can be guessed; here
there is nothing to guess, and every request pays for the hash.
"""

import hashlib
import hmac
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from service.jobs import ANYONE

PREFIX = "bar_"
KEY = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
MOST_REQUESTS_PER_MINUTE = 1_000_000
MOST_JOBS = 1_000_000
ID_LENGTH = 8


def make_key() -> str:
    """Return a new key."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what is kept of a key: its SHA-256 in lower-case hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def _not_anyone(name: str) -> str:
    if name == ANYONE:
        raise ValueError(f"{ANYONE!r} stands for those without a key")
    return name


Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"), AfterValidator(_not_anyone)
]


class ApiKey(BaseModel):
    """What is kept of one key. A name may have several, so that its owner can change over."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name = Field(description="whose key it is: the owner of the jobs")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key")
    created: AwareDatetime | None = Field(default=None, description="when it was made")
    expires: AwareDatetime | None = Field(default=None, description="when it ends; without, never")
    requests_per_minute: int | None = Field(
        default=None, ge=0, le=MOST_REQUESTS_PER_MINUTE, description="a limit of its own; 0 is none"
    )
    max_jobs: int | None = Field(
        default=None, ge=1, le=MOST_JOBS, description="unfinished jobs that its owner may have"
    )

    @property
    def id(self) -> str:
        """What tells the keys of one name apart; it helps nobody to find the key."""
        return self.sha256[:ID_LENGTH]

    def has_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[ApiKey]


def keys_from_json(content: bytes) -> list[ApiKey]:
    """Return the keys that a file holds.

    Raises: ValueError says in one line what is wrong and where, never what stands there.
    """
    return _checked(lambda: _Document.model_validate_json(content))


def keys_from_hashes(text: str) -> list[ApiKey]:
    """Return the keys of `NAME=SHA256,…`.

    Raises: ValueError says in one line what is wrong and where, never what stands there.
    """
    pairs = [entry.strip().partition("=") for entry in text.split(",") if entry.strip()]
    values = [{"name": name, "sha256": sha256} for name, _, sha256 in pairs]
    return _checked(lambda: _Document.model_validate({"keys": values}))


def keys_to_json(keys: Iterable[ApiKey]) -> bytes:
    """Return the content of a file that holds `keys`."""
    text = _Document(keys=list(keys)).model_dump_json(indent=2, exclude_none=True)
    return text.encode() + b"\n"


def _checked(read: Callable[[], _Document]) -> list[ApiKey]:
    try:
        keys = read().keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(": ".join(part for part in (place, first["msg"]) if part)) from None
    KeyTable(keys)  # which refuses one that occurs twice
    return keys


class KeyTable:
    """Keys, found by what a client sends."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        """Index `keys`. Raises: ValueError if one of them occurs twice."""
        self._by_id: defaultdict[str, list[ApiKey]] = defaultdict(list)
        for key in keys:
            for other in self._by_id[key.id]:
                if other.sha256 == key.sha256:
                    raise ValueError(f"one key stands there twice, for {other.name} and {key.name}")
            self._by_id[key.id].append(key)

    def __len__(self) -> int:
        return sum(len(keys) for keys in self._by_id.values())

    def find(self, text: str) -> ApiKey | None:
        """Return the key that `text` is, expired or not; None if it is none."""
        sha256, found = hash_of(text), None
        # What time can tell is how a hash begins. Nobody can steer that of a guess, and to know
        # it of a key does not help to find the key.
        for key in self._by_id.get(sha256[:ID_LENGTH], ()):
            if hmac.compare_digest(key.sha256, sha256):
                found = key
        return found
