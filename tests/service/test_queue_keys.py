"""Facts of the keys in Redis: what is documented is what is used, in Python and in Lua."""

import re

from service import queue_keys
from service.queue_keys import Keys
from service.redis_client import SCRIPTS
from service.redis_scripts import NAMES

PREFIX = "{bar:<queue>}:"


def head(key: str) -> str:
    """Return a key up to its first variable part."""
    return key.partition("<")[0]


def documented() -> set[str]:
    """Return the heads of all keys in the schema."""
    lines = (queue_keys.__doc__ or "").splitlines()
    keys = {line.split()[0] for line in lines if line.strip().startswith(PREFIX)}
    return {head(key.removeprefix(PREFIX)) for key in keys}


def in_python() -> set[str]:
    """Return the heads of all keys that `Keys` makes."""
    keys, heads = Keys("<queue>"), set()
    for name in dir(Keys):
        if name.startswith("_") or name == "prefix":
            continue
        made = getattr(keys, name)
        if callable(made):
            made = made(*[f"<{n}>" for n in range(made.__code__.co_argcount - 1)])
        heads.add(head(made.removeprefix(PREFIX)))
    return heads


def in_lua(name: str) -> set[str]:
    """Return the heads of all keys that a script spells."""
    return set(re.findall(r"\bP \.\. '([^']+)'", (SCRIPTS / f"{name}.lua").read_text("utf-8")))


def test_scripts_take_keys_from_one_place() -> None:
    """Only the part that all scripts begin with spells keys; no other even has the prefix."""
    texts = {name: (SCRIPTS / f"{name}.lua").read_text("utf-8") for name in NAMES}
    assert [] == [name for name, text in texts.items() if re.search(r"\bP\b(?! \()", text)]


def test_the_schema_has_every_key_and_no_other() -> None:
    """What Lua and Python spell is documented, and what is documented is spelt somewhere."""
    assert documented() == in_python() | in_lua("state")


def test_all_keys_of_a_queue_lie_in_one_slot() -> None:
    """Whatever is in a key, the cluster's hash is of the queue alone."""
    keys = Keys("digits")
    for key in (keys.meta, keys.job("a{b}c"), keys.staged("{x}", "t"), keys.events("{bar:other}")):
        assert "bar:digits" == key[key.index("{") + 1 : key.index("}")]
