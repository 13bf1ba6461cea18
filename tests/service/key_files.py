"""Files of API keys as tests write them."""

import json
from pathlib import Path
from typing import Any

from service.api_keys import hash_of, make_key


def entry(name: str, key: str, **fields: Any) -> dict[str, Any]:
    """Return what a file says of a key."""
    return {"name": name, "sha256": hash_of(key), **fields}


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    """Write a file in place, as an editor may."""
    path.write_text(json.dumps({"keys": entries}))
    return path


def one_key(path: Path, name: str = "alice", **fields: Any) -> str:
    """Write a file with one new key, and return the key."""
    key = make_key()
    write_keys(path, entry(name, key, **fields))
    return key


def spoil(path: Path) -> None:
    """Leave half of a file."""
    path.write_text('{"keys": [')


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key."""
    return {"authorization": f"Bearer {key}"}
