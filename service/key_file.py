"""Changes to the file of API keys: whole or not at all, one after the other.

`bar keys` writes the file while servers read it. A change puts a new file in the place of the old
one, so that a reader sees one or the other. What is locked is the directory: a lock on the file
would stay with the old one.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.api_keys import ApiKey, keys_from_json, keys_to_json
from service.errors import BarError


def load(path: Path) -> list[ApiKey]:
    """Return the keys in the file at `path`. Raises: BarError if it cannot be read or is broken."""
    try:
        return keys_from_json(path.read_bytes())
    except OSError as error:
        raise BarError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BarError(f"{path} is no file of API keys: {error}") from None


@contextmanager
def editing(path: Path) -> Iterator[list[ApiKey]]:
    """Hand out the keys in the file at `path`, none without a file; write what becomes of them.

    Others who edit wait until it is done. If the block raises, the file stays as it was.

    Raises: BarError if the file is broken, or cannot be read or written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        with _locked(target.parent) as directory:
            keys = load(target) if target.exists() else []
            before = list(keys)
            yield keys
            if keys != before:
                _replace(target, keys_to_json(keys))
                os.fsync(directory)
    except OSError as error:
        raise BarError(f"cannot change {path}: {error.strerror}") from None


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(target: Path, content: bytes) -> None:
    """Put `content` where `target` is: for its owner alone, or for whom the old file was."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if target.exists():
                _take_after(target.stat(), file.fileno())
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _take_after(old: os.stat_result, descriptor: int) -> None:
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
