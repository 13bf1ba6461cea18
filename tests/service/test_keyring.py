"""Facts of the keys in force: a sound change is taken over, a broken one is not, and both soon."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api_keys import ApiKey, hash_of, keys_from_hashes, make_key
from service.errors import StartupError
from service.keyring import LOOK_AGAIN_S, Keyring
from service.settings import Settings
from tests.service.fakes import FakeClock
from tests.service.key_files import entry, one_key, spoil, write_keys
from tests.service.log_lines import said

OLD, NEW = make_key(), make_key()

Replace = Callable[[Path, Path], None]


def edited(path: Path, new: Path) -> None:
    """Write into the file."""
    path.write_bytes(new.read_bytes())


def renamed(path: Path, new: Path) -> None:
    """Put another file in its place."""
    new.replace(path)


def relinked(path: Path, new: Path) -> None:
    """Do as Kubernetes does to a mounted secret: `path` → ..data/keys.json, ..data → a folder."""
    folder = path.parent / "..2"
    folder.mkdir()
    new.replace(folder / path.name)
    link = path.parent / "..data_tmp"
    link.symlink_to(folder.name)
    link.replace(path.parent / "..data")


def mounted(directory: Path) -> Path:
    """Lay a file with the old key down as Kubernetes mounts a secret."""
    folder, path = directory / "..1", directory / "keys.json"
    folder.mkdir()
    (directory / "..data").symlink_to(folder.name)
    write_keys(folder / path.name, entry("alice", OLD))
    path.symlink_to(Path("..data") / path.name)
    return path


@pytest.mark.parametrize("replace", [edited, renamed, relinked])
def test_a_changed_file_is_taken_over(tmp_path: Path, replace: Replace) -> None:
    """However it is replaced: after a second the old key is out, and the new one is in at once."""
    clock, path = FakeClock(), mounted(tmp_path)
    keyring = Keyring(path=path, clock=clock)
    replace(path, write_keys(tmp_path / "next.json", entry("alice", NEW)))
    assert keyring.find(OLD)
    clock.now += LOOK_AGAIN_S
    assert keyring.find(OLD) is None
    assert keyring.find(NEW)


def test_a_key_that_was_just_made_is_found(tmp_path: Path) -> None:
    """Whoever makes a key and uses it does not have to wait."""
    path = write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring = Keyring(path=path, clock=FakeClock())
    write_keys(path, entry("alice", OLD), entry("bob", NEW))
    found = keyring.find(NEW)
    assert found
    assert "bob" == found.name


def test_a_change_that_time_stamps_hide_is_seen(tmp_path: Path) -> None:
    """The same size, the same file, the same time: what counts is what stands there."""
    clock, path = FakeClock(), write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring, before = Keyring(path=path, clock=clock), path.stat()
    write_keys(path, entry("alice", NEW))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += LOOK_AGAIN_S
    assert keyring.find(OLD) is None


def mistype(path: Path) -> None:
    """Make a mistake in one field."""
    path.write_text('{"keys": [{"name": "alice", "sha256": "x"}]}')


def remove(path: Path) -> None:
    """Leave no file."""
    path.unlink()


def obstruct(path: Path) -> None:
    """Put a folder where the file was."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("break_it", [spoil, mistype, remove, obstruct])
def test_a_broken_file_changes_nothing_and_is_told_once(
    tmp_path: Path, break_it: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """The keys before stay in force; one error says why; what is repaired is taken over."""
    clock, path = FakeClock(), write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring = Keyring(path=path, clock=clock)
    with caplog.at_level(logging.INFO):
        break_it(path)
        for _ in range(3):
            clock.now += LOOK_AGAIN_S
            assert keyring.find(OLD)
            assert keyring.find(NEW) is None
    (record,) = said(caplog, "bar.auth", logging.INFO)
    assert "ERROR" == record.levelname
    assert str(path) == vars(record)["path"]
    assert vars(record)["error"]
    if path.is_dir():
        path.rmdir()
    write_keys(path, entry("alice", NEW))
    assert keyring.find(NEW)
    assert keyring.find(OLD) is None


def test_a_file_that_breaks_twice_is_told_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Repaired in between, the same mistake is news again."""
    clock, path = FakeClock(), write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring, good = Keyring(path=path, clock=clock), path.read_bytes()
    for content in (b"{", good, b"{"):
        path.write_bytes(content)
        clock.now += LOOK_AGAIN_S
        keyring.find(OLD)
    assert 2 == len(said(caplog, "bar.auth", logging.ERROR))


def test_an_emptied_file_lets_nobody_in(tmp_path: Path) -> None:
    """To revoke all keys is a sound change; to start without any is one too."""
    clock, path = FakeClock(), write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring = Keyring(path=path, clock=clock)
    write_keys(path)
    clock.now += LOOK_AGAIN_S
    assert keyring.find(OLD) is None
    assert 0 == len(keyring) == len(Keyring(path=path))


def test_keys_of_a_setting_stay_beside_those_of_the_file(tmp_path: Path) -> None:
    """A changed file does not touch them."""
    path, fixed = tmp_path / "keys.json", make_key()
    key = one_key(path)
    keyring = Keyring(keys_from_hashes(f"ops={hash_of(fixed)}"), path)
    write_keys(path, entry("alice", NEW))
    assert keyring.find(NEW)
    assert keyring.find(fixed)
    assert keyring.find(key) is None


def test_a_file_cannot_take_a_key_of_the_setting_for_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start that is an error, later the file is not taken over."""
    path = write_keys(tmp_path / "keys.json", entry("alice", OLD))
    fixed = [ApiKey(name="ops", sha256=hash_of(NEW))]
    keyring = Keyring(fixed, path)
    write_keys(path, entry("mallory", NEW))
    assert keyring.find(make_key()) is None
    found = keyring.find(NEW)
    assert found
    assert "ops" == found.name
    *_, complaint = said(caplog, "bar.auth")
    assert "one key stands there twice, for ops and mallory" == vars(complaint)["error"]
    with pytest.raises(StartupError, match="twice, for ops and mallory"):
        Keyring(fixed, path)


@pytest.mark.parametrize(("content", "message"), [
    ("{", r"keys\.json cannot be used: Invalid JSON"),
    ('{"keys": [{"name": "a"}]}', r"keys\.json cannot be used: keys\.0\.sha256: Field required"),
    (None, r"keys\.json cannot be used: No such file"),
])  # fmt: skip
def test_a_broken_file_at_the_start_is_a_startup_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    """In one line that names the file and what is wrong in it."""
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=message) as error:
        Keyring.of(Settings.load({"api_keys_file": path}, {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", " ", ",", "alice", "alice=bar_secret"])
def test_wrong_hashes_are_a_startup_error(text: str) -> None:
    """Also when there are none: a variable that is empty by mistake must not open the service."""
    with pytest.raises(StartupError, match=r"api_key_hashes.*NAME=SHA256") as error:
        Keyring.of(Settings.load({}, {"BAR_API_KEY_HASHES": text}))
    assert "bar_secret" not in str(error.value)


def test_without_settings_there_are_no_keys() -> None:
    """Which is not the same as an empty file."""
    assert Keyring.of(Settings.load({}, {})) is None


def test_what_cannot_be_a_key_costs_nothing(tmp_path: Path) -> None:
    """The file is not read again for a text that has not the form of a key."""
    path = write_keys(tmp_path / "keys.json", entry("alice", OLD))
    keyring = Keyring(path=path)
    write_keys(path, entry("alice", OLD), entry("alice", NEW))
    for text in ("", "bar_", "sk-" + "x" * 48, NEW + "x", "bär_" + "x" * 43):
        assert keyring.find(text) is None
    assert 1 == len(keyring)
    assert keyring.find(NEW)
    assert 2 == len(keyring)
