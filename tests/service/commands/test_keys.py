"""Facts of `bar keys`: a key is shown once, kept as a hash, in force at once, and revoked."""

import json
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.api_keys import KEY, hash_of
from service.cli import main as bar
from service.commands.keys import main
from service.key_file import load
from tests.service.fakes import FakeEngine
from tests.service.harness import running
from tests.service.key_files import bearer, spoil


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the command works on."""
    path = tmp_path / "keys.json"
    monkeypatch.setenv("BAR_API_KEYS_FILE", str(path))
    return path


def create(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Make a key and return it."""
    assert 0 == main(["create", *arguments])
    return capsys.readouterr().out.strip()


def test_a_key_stands_alone_on_standard_output(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """KEY=$(bar keys create NAME) is the key; what is said about it goes elsewhere."""
    assert 0 == main(["create", "alice"])
    printed = capsys.readouterr()
    key = printed.out.removesuffix("\n")
    assert KEY.fullmatch(key)
    assert "only copy of alice's key" in printed.err
    assert str(path) in printed.err
    assert key not in printed.err


def test_only_the_hash_is_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a file for its owner alone."""
    key = create(capsys, "alice")
    (kept,) = json.loads(path.read_text())["keys"]
    assert {"name", "sha256", "created"} == set(kept)
    assert ("alice", hash_of(key)) == (kept["name"], kept["sha256"])
    assert key not in path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.anyio
async def test_a_new_key_is_let_in_and_a_revoked_one_is_not(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running service needs no restart; the other key of the same name goes on."""
    monkeypatch.setattr("service.keyring.LOOK_AGAIN_S", 0.0)
    first = create(capsys, "alice")
    async with running(api_keys_file=path) as h:

        async def status(key: str) -> int:
            return (await h.client.get("/v1/models", headers=bearer(key))).status_code

        assert 200 == await status(first)
        second = create(capsys, "alice")
        assert (200, 200) == (await status(first), await status(second))
        assert 0 == main(["revoke", "alice", "--id", hash_of(first)[:8]])
        assert (401, 200) == (await status(first), await status(second))
        assert 0 == main(["revoke", "alice"])
        assert 401 == await status(second)


def test_the_flag_wins_over_the_variable(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with every setting."""
    create(capsys, "alice", "--file", str(tmp_path / "other.json"))
    assert (True, False) == ((tmp_path / "other.json").exists(), path.exists())


def test_without_a_file_the_entry_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a variable, or a secret that is made elsewhere."""
    monkeypatch.delenv("BAR_API_KEYS_FILE", raising=False)
    assert 0 == main(["create", "alice"])
    printed = capsys.readouterr()
    assert f"alice={hash_of(printed.out.strip())}" in printed.err
    assert "BAR_API_KEY_HASHES" in printed.err


@pytest.mark.parametrize(("text", "expected"), [
    ("30d", timedelta(days=30)),
    ("12h", timedelta(hours=12)),
    ("2100-12-31", datetime(2100, 12, 31, tzinfo=UTC)),
    ("2100-12-31T06:00:00+02:00", datetime(2100, 12, 31, 4, tzinfo=UTC)),
])  # fmt: skip
def test_a_key_may_have_an_end(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    expected: datetime | timedelta,
) -> None:
    """After a time, or at a date, which is one of UTC unless it says."""
    create(capsys, "alice", "--expires", text)
    (key,) = load(path)
    assert key.created
    assert key.expires == (key.created + expected if isinstance(expected, timedelta) else expected)


def test_a_key_may_have_its_own_limit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 is none."""
    create(capsys, "alice", "--requests-per-minute", "60")
    create(capsys, "bob", "--requests-per-minute", "0")
    assert [60, 0] == [key.requests_per_minute for key in load(path)]


@pytest.mark.anyio
async def test_a_key_may_have_its_own_quota(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond so many unfinished jobs its owner is refused, while others are not."""
    ann, bob = create(capsys, "ann", "--max-jobs", "1"), create(capsys, "bob")
    async with running(FakeEngine(num_slots=1), api_keys_file=path) as h:
        h.engine.gate.clear()
        detached = {"prefer": "respond-async"}
        statuses = [
            (await h.generate({**bearer(key), **detached}, class_id=1)).status_code
            for key in (ann, ann, bob, bob)
        ]
        assert [202, 429, 202, 202] == statuses


def test_a_list_shows_what_is_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, ids, times and limits in columns; which are over is said; no whole hash."""
    keys = [
        create(capsys, "alice", "--requests-per-minute", "60"),
        create(capsys, "bob", "--expires", "1d"),
    ]
    past = path.read_text().replace('"expires": "20', '"expires": "19')
    path.write_text(past)
    assert 0 == main(["list"])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert ["NAME", "ID", "CREATED", "EXPIRES", "PER", "MINUTE", "JOBS"] == heading.split()
    assert [["alice", hash_of(keys[0])[:8]], ["bob", hash_of(keys[1])[:8]]] == [
        row.split()[:2] for row in rows
    ]
    assert re.search(r"never +60 +-$", rows[0])
    assert "(over)" in rows[1]
    assert hash_of(keys[0]) not in "".join(rows)


@pytest.mark.parametrize(("arguments", "message"), [
    (["create"], "NAME"),
    (["create", "a b"], "NAME: String should match pattern"),
    (["create", "anyone"], "stands for those without a key"),
    (["create", "alice", "--expires", "soon"], "must be like 30d, 12h or 2030-12-31, got 'soon'"),
    (["create", "alice", "--expires", "9999999d"], "must be like 30d"),
    (["create", "alice", "--expires", "9999-12-31T23:59:59-12:00"], "must be like 30d"),
    (["create", "alice", "--expires", "2020-01-01"], "'2020-01-01' is over already"),
    (["create", "alice", "--requests-per-minute", "-1"], "whole number from 0 to 1000000"),
    (["create", "alice", "--requests-per-minute", "many"], "whole number from 0 to 1000000"),
    (["create", "alice", "--max-jobs", "0"], "whole number from 1 to 1000000"),
    (["forget", "alice"], "invalid choice"),
    ([], "ACTION"),
])  # fmt: skip
def test_wrong_usage_is_explained(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Status 2, and nothing is written."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert 2 == stop.value.code
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_an_error_is_one_line_and_status_1(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, a broken one, a key that is not there, an end without a file to keep it in."""

    def error(*arguments: str) -> str:
        assert 1 == bar(["keys", *arguments])
        printed = capsys.readouterr()
        assert (1, "") == (printed.err.count("\n"), printed.out)
        return printed.err

    assert "cannot read" in error("list")
    assert "bar keys: a key of alice is not in" in error("revoke", "alice")
    create(capsys, "alice")
    assert "alice's key 00 is not in" in error("revoke", "alice", "--id", "00")
    spoil(path)
    for arguments in (["list"], ["create", "bob"], ["revoke", "alice"]):
        assert "no file of API keys: Invalid JSON" in error(*arguments)
    monkeypatch.delenv("BAR_API_KEYS_FILE")
    assert "give --file" in error("create", "bob", "--expires", "1d")
    assert "which keys? Give --file" in error("list")


def test_processes_at_the_same_time_lose_no_key(path: Path) -> None:
    """Each waits for the others: three who make a key leave three."""
    command = [sys.executable, "-m", "service", "keys", "create"]
    processes = [
        subprocess.Popen([*command, f"key{n}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    keys = [process.communicate()[0].decode().strip() for process in processes]
    assert {hash_of(key) for key in keys} == {key.sha256 for key in load(path)}
    assert 3 == len(set(keys))
