"""Facts of changes to the file of keys: whole or not at all, none lost, readable as before."""

import json
import stat
import threading
from pathlib import Path

import pytest

from service.api_keys import ApiKey, hash_of, keys_from_json
from service.errors import BarError
from service.key_file import editing, load


def add(path: Path, name: str) -> None:
    """Add a key of `name`."""
    with editing(path) as keys:
        keys.append(ApiKey(name=name, sha256=hash_of(name)))


def names(path: Path) -> list[str]:
    """Name the keys in the file, in their order."""
    return [key.name for key in load(path)]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It is made with mode 0600, and nothing else is left in the directory."""
    path = tmp_path / "keys.json"
    add(path, "alice")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(tmp_path.iterdir())
    assert ["alice"] == names(path)


def test_a_file_stays_readable_for_whom_it_was(tmp_path: Path) -> None:
    """A server that runs as another user of the group still reads it afterwards."""
    path = tmp_path / "keys.json"
    add(path, "alice")
    path.chmod(0o640)
    add(path, "bob")
    assert 0o640 == stat.S_IMODE(path.stat().st_mode)


def test_a_change_puts_another_file_in_its_place(tmp_path: Path) -> None:
    """Who has the old file open reads it to its end."""
    path = tmp_path / "keys.json"
    add(path, "alice")
    with path.open("rb") as old:
        add(path, "bob")
        assert ["alice"] == [key.name for key in keys_from_json(old.read())]
    assert ["alice", "bob"] == names(path)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file behind it is what changes."""
    path, link = tmp_path / "real" / "keys.json", tmp_path / "link.json"
    path.parent.mkdir()
    link.symlink_to(path)
    add(link, "alice")
    assert link.is_symlink()
    assert ["alice"] == names(path)


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Neither half of a change nor a temporary file remains."""
    path = tmp_path / "keys.json"
    add(path, "alice")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not in list"), editing(path) as keys:
        keys.remove(keys.pop())
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_who_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    """Not even an empty file."""
    with editing(tmp_path / "keys.json") as keys:
        assert [] == keys
    assert [] == list(tmp_path.iterdir())


def test_changes_at_the_same_time_all_stand(tmp_path: Path) -> None:
    """Twenty who add a key each wait for one another."""
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=add, args=(path, f"key{n}")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"key{n}" for n in range(20)} == set(names(path))


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    """It is told, and stays as it is for somebody to repair."""
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [')
    with pytest.raises(BarError, match=r"keys\.json is no file of API keys: Invalid JSON"):
        add(path, "alice")
    assert '{"keys": [' == path.read_text()


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Reading and changing name the file and the reason."""
    path = tmp_path / "nowhere" / "keys.json"
    with pytest.raises(BarError, match=r"cannot change .*keys\.json: No such file"):
        add(path, "alice")
    with pytest.raises(BarError, match=r"cannot read .*keys\.json: No such file"):
        load(path)


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    """One field a line, nothing that is not set, a last line that ends."""
    path = tmp_path / "keys.json"
    add(path, "alice")
    assert {"keys": [{"name": "alice", "sha256": hash_of("alice")}]} == json.loads(path.read_text())
    assert path.read_text().endswith("}\n")
    assert 8 == len(path.read_text().splitlines())
