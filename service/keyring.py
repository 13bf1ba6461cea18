"""The API keys in force: those of a setting, and those of a file that may change under the server.

When requests come, the file is read again, at most once a second or when a key is not known, and
taken over if it is sound. Its bytes are compared, not its time stamps: so an edit, an atomic rename
and the swap of a mounted secret's symbolic link look alike, and no clock is too coarse. It has a
few kilobytes, which are read in microseconds.
"""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from service.api_keys import KEY, ApiKey, KeyTable, keys_from_hashes, keys_from_json
from service.errors import StartupError
from service.settings import Settings

logger = logging.getLogger("bar.auth")

LOOK_AGAIN_S = 1.0  # for so long at most a revoked key stays in force


class Keyring:
    """Knows the keys in force; `clock` counts seconds."""

    def __init__(
        self,
        fixed: Iterable[ApiKey] = (),
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `fixed` and the file at `path`. Raises: StartupError if they cannot be used."""
        self._fixed, self._path, self._clock = tuple(fixed), path, clock
        self._content = b""  # of the file, when its keys were taken over
        self._complaint = ""  # why what it holds now was not
        self._looked_at = clock()
        try:
            self._table = KeyTable(self._fixed)
            if path is not None:
                self._take_over(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StartupError(f"the API keys in {path} cannot be used: {_why(error)}") from None

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the keys that `settings` name; None if they name neither file nor hashes.

        Raises: StartupError if they cannot be used.
        """
        if not settings.has_keys:
            return None
        fixed: list[ApiKey] = []
        if settings.api_key_hashes is not None:
            fixed = _fixed(settings.api_key_hashes)
        return cls(fixed, settings.api_keys_file)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, text: str) -> ApiKey | None:
        """Return the key that `text` is, expired or not; None if it is none in force."""
        if not KEY.fullmatch(text):
            return None
        if self._clock() - self._looked_at >= LOOK_AGAIN_S:
            self._look_again()
        key = self._table.find(text)
        if key is None:
            self._look_again()  # it may have been made a moment ago
            key = self._table.find(text)
        return key

    def _look_again(self) -> None:
        if self._path is None:
            return
        self._looked_at = self._clock()
        try:
            content = self._path.read_bytes()
            if content != self._content:
                self._take_over(content)
                logger.info("API keys taken over", extra={"keys": len(self)})
            self._complaint = ""
        except (OSError, ValueError) as error:
            if self._complaint != _why(error):
                self._complaint = _why(error)
                logger.error(  # noqa: TRY400 - the traceback has nothing to add
                    "the file of API keys cannot be used; those before stay in force",
                    extra={"path": str(self._path), "error": self._complaint},
                )

    def _take_over(self, content: bytes) -> None:
        self._table = KeyTable([*self._fixed, *keys_from_json(content)])
        self._content = content


def _fixed(hashes: str) -> list[ApiKey]:
    try:
        keys = keys_from_hashes(hashes)
    except ValueError as error:
        raise StartupError(f"api_key_hashes must be NAME=SHA256,…: {error}") from None
    if not keys:
        raise StartupError("api_key_hashes must be NAME=SHA256,…, and it is empty")
    return keys


def _why(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
