"""Facts of API keys: random, kept as hashes, read strictly, compared in constant time."""

import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from service.api_keys import (
    KEY,
    ApiKey,
    KeyTable,
    hash_of,
    keys_from_hashes,
    keys_from_json,
    keys_to_json,
    make_key,
)

SHA = "0123456789abcdef" * 4
GOOD = {"name": "alice", "sha256": SHA}


def test_a_key_is_256_random_bits_behind_a_prefix() -> None:
    """No two are alike, and all have the form that is looked for."""
    keys = {make_key() for _ in range(1000)}
    assert 1000 == len(keys)
    assert all(KEY.fullmatch(key) for key in keys)
    assert all(256 <= 6 * len(key.removeprefix("bar_")) for key in keys)


def test_a_hash_is_plain_sha256() -> None:
    """Anyone can make it: printf %s KEY | sha256sum."""
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == hash_of("abc")


def test_only_the_whole_right_key_is_found() -> None:
    """Another key, part of one, or one with more is none."""
    key, other = make_key(), make_key()
    table = KeyTable([ApiKey(name="alice", sha256=hash_of(key))])
    found = table.find(key)
    assert found
    assert ("alice", hash_of(key)[:8]) == (found.name, found.id)
    for text in (other, key[:-1], key + "A", key.lower(), key.upper(), " " + key, hash_of(key), ""):
        assert table.find(text) is None


def test_whole_hashes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a key is found is decided by hmac.compare_digest, on all 64 digits, alone."""
    key = make_key()
    compared: list[tuple[str, str]] = []

    def never_equal(a: str, b: str) -> bool:
        compared.append((a, b))
        return False

    table = KeyTable([ApiKey(name="alice", sha256=hash_of(key))])
    monkeypatch.setattr(hmac, "compare_digest", never_equal)
    assert table.find(key) is None
    assert [(hash_of(key), hash_of(key))] == compared


def test_all_keys_whose_hashes_begin_alike_are_compared() -> None:
    """A collision of what the table is indexed by hides no key."""
    key = make_key()
    like = hash_of(key)[:-1] + ("0" if hash_of(key)[-1] != "0" else "1")
    for order in (1, -1):
        keys = [ApiKey(name="mine", sha256=hash_of(key)), ApiKey(name="alike", sha256=like)]
        found = KeyTable(keys[::order]).find(key)
        assert found
        assert "mine" == found.name


def test_a_key_expires_at_its_time() -> None:
    """Before it, it is good; without one, for ever."""
    now = datetime.now(UTC)
    assert not ApiKey(name="a", sha256=SHA).has_expired()
    assert not ApiKey(name="a", sha256=SHA, expires=now + timedelta(minutes=1)).has_expired()
    assert ApiKey(name="a", sha256=SHA, expires=now).has_expired()


def test_a_file_is_read_as_it_was_written() -> None:
    """Names, hashes, times and limits come back; times may have any offset."""
    keys = [
        ApiKey(
            name="alice@example.org",
            sha256=SHA,
            created=datetime(2026, 1, 31, 12, tzinfo=UTC),
            expires=datetime(2027, 1, 31, tzinfo=UTC),
            requests_per_minute=60,
        ),
        ApiKey(name="bob", sha256=SHA[::-1], requests_per_minute=0),
    ]
    assert keys == keys_from_json(keys_to_json(keys))
    (read,) = keys_from_json(b'{"keys": [%s]}' % json.dumps(
        {**GOOD, "expires": "2027-01-31T02:00:00+02:00"}).encode())  # fmt: skip
    assert keys[0].expires == read.expires
    assert [] == keys_from_json(b'{"keys": []}')


@pytest.mark.parametrize(("content", "message"), [
    (b"", "Invalid JSON"),
    (b"\xff", "Invalid JSON"),
    (b"[]", "Input should be an object"),
    (b"{}", "keys: Field required"),
    (b'{"keys": {}}', "keys: Input should be a valid array"),
    (b'{"keys": [], "version": 2}', "version: Extra inputs"),
])  # fmt: skip
def test_a_broken_file_is_refused(content: bytes, message: str) -> None:
    """What is not exactly a list of keys is none."""
    with pytest.raises(ValueError, match=message):
        keys_from_json(content)


@pytest.mark.parametrize(("field", "value"), [
    ("name", ""), ("name", "a b"), ("name", "a\n"), ("name", "{a}"), ("name", ".a"),
    ("name", "a" * 65), ("name", "anyone"), ("name", 1), ("name", None),
    ("sha256", SHA.upper()), ("sha256", SHA[:-1]), ("sha256", SHA + "0"), ("sha256", SHA + "\n"),
    ("sha256", "bar_" + "s" * 43), ("expires", "2027-01-31T00:00:00"), ("expires", "soon"),
    ("expires", 1893456000), ("created", True), ("requests_per_minute", -1),
    ("requests_per_minute", 1_000_001), ("requests_per_minute", 1.5),
    ("requests_per_minute", "60"), ("requests_per_minute", True), ("key", "bar_" + "s" * 43),
])  # fmt: skip
def test_a_wrong_field_is_named_and_its_value_not_repeated(field: str, value: Any) -> None:
    """A key that was pasted into the wrong place must not end up in a log."""
    content = json.dumps({"keys": [GOOD | {"sha256": SHA[::-1]}, {**GOOD, field: value}]})
    with pytest.raises(ValueError, match=rf"^keys\.1\.{field}: ") as error:
        keys_from_json(content.encode())
    assert "ssss" not in str(error.value)
    assert not isinstance(error.value, ValidationError)


def test_one_key_cannot_have_two_owners() -> None:
    """The same hash twice is refused: whose would the jobs be?"""
    twice = json.dumps({"keys": [GOOD, {**GOOD, "name": "bob"}]}).encode()
    with pytest.raises(ValueError, match="twice, for alice and bob"):
        keys_from_json(twice)


def test_hashes_stand_in_a_setting_too() -> None:
    """NAME=SHA256, separated by commas; spaces and a last comma do no harm."""
    keys = keys_from_hashes(f"alice={SHA}, bob={SHA[::-1]},")
    assert [("alice", SHA), ("bob", SHA[::-1])] == [(key.name, key.sha256) for key in keys]


@pytest.mark.parametrize("text", ["alice", f"={SHA}", "alice=" + "s" * 64, f"a={SHA},b={SHA}"])
def test_a_wrong_setting_is_refused_and_not_repeated(text: str) -> None:
    """The place is named, not what stands there."""
    with pytest.raises(ValueError, match=r"keys\.0|twice") as error:
        keys_from_hashes(text)
    assert "ssss" not in str(error.value)
