"""The hub, through the real client: what is fetched, kept and refused, and what the errors say."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import constants

from model import hub as hub_module
from model.errors import DownloadError
from model.hub import Hub, PublishedFiles
from tests.model.fake_hub import FakeHub

FILES = ("generator/a.bin", "tokenizer/b.bin")
CONTENT = {FILES[0]: b"generator " * 3000, FILES[1]: b"tokenizer " * 2000}


@pytest.fixture
def server() -> Iterator[FakeHub]:
    """Serve one commit of two files on the branch main."""
    with FakeHub() as server:
        server.commit(dict(CONTENT))
        yield server


def _hub(server: FakeHub, cache_dir: Path, revision: str = "main") -> Hub:
    return Hub(revision, cache_dir, server.endpoint)


def _contents(files: PublishedFiles) -> dict[str, bytes]:
    return dict(zip(FILES, (path.read_bytes() for path in files.paths), strict=True))


def test_both_files_arrive_from_one_commit(server: FakeHub, tmp_path: Path) -> None:
    """A download returns the files' content and the commit that the branch stood for."""
    files = _hub(server, tmp_path).download(FILES)
    assert _contents(files) == CONTENT
    assert files.commit == server.branches["main"]
    assert all(tmp_path / "hub" in path.parents for path in files.paths)


def test_what_is_cached_is_found_without_network(server: FakeHub, tmp_path: Path) -> None:
    """The cache answers for a branch and for its commit, and only for whole sets of files."""
    hub = _hub(server, tmp_path)
    assert hub.cached_files(FILES) is None
    assert hub.cached_commit() is None
    files = hub.download(FILES)
    server.requests.clear()
    assert hub.cached_files(FILES) == files
    assert Hub(files.commit, tmp_path).cached_files(FILES) == files
    assert hub.cached_files([*FILES, "generator/other.bin"]) is None
    assert server.requests == []


def test_a_second_download_transfers_nothing(server: FakeHub, tmp_path: Path) -> None:
    """Files of a commit that is here are looked up but not sent again."""
    first = _hub(server, tmp_path).download(FILES)
    server.requests.clear()
    assert _hub(server, tmp_path).download(FILES) == first
    assert not [request for request in server.requests if request.startswith("GET")]


def test_a_commit_pins_the_files_while_its_branch_moves(server: FakeHub, tmp_path: Path) -> None:
    """By its commit an old version is fetched; the branch gives the new one."""
    old = server.branches["main"]
    new = server.commit({name: content + b"!" for name, content in CONTENT.items()})
    pinned = _hub(server, tmp_path, old).download(FILES)
    latest = _hub(server, tmp_path).download(FILES)
    assert (pinned.commit, latest.commit) == (old, new)
    assert _contents(pinned) == CONTENT
    assert _contents(latest)[FILES[0]] == CONTENT[FILES[0]] + b"!"


def test_a_push_during_the_download_does_not_mix_versions(server: FakeHub, tmp_path: Path) -> None:
    """The second file is of the first one's commit even if the branch moves in between."""

    def push(name: str, done: int, total: int | None) -> None:
        if name == FILES[0]:
            server.commit(dict.fromkeys(FILES, b"newer"))

    old = server.branches["main"]
    files = _hub(server, tmp_path).download(FILES, push)
    assert files.commit == old
    assert _contents(files) == CONTENT


def test_a_transfer_that_breaks_off_is_resumed(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a dropped connection only the chunks that are missing are asked for."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut_after = 12_345
    files = _hub(server, tmp_path).download(FILES)
    assert _contents(files) == CONTENT
    assert server.ranges == ["bytes=12000-"]


def test_progress_reaches_the_size_of_each_file(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback gets file, bytes so far and bytes in all, and never goes backwards."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    seen: list[tuple[str, int, int | None]] = []
    _hub(server, tmp_path).download(FILES, lambda *step: seen.append(step))
    for name, content in CONTENT.items():
        steps = [(done, total) for file, done, total in seen if file == name]
        assert len(steps) > 10
        assert steps[-1] == (len(content), len(content))
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_a_damaged_transfer_is_refused_and_removed(server: FakeHub, tmp_path: Path) -> None:
    """Bytes that are not those of the checksum are not kept: the next try starts anew."""
    server.damage = True
    hub = _hub(server, tmp_path)
    with pytest.raises(DownloadError, match=r"a\.bin arrived damaged .* run the command again"):
        hub.download(FILES)
    server.damage = False
    assert _contents(hub.download(FILES)) == CONTENT


def test_deleted_files_are_gone_and_can_be_fetched_again(server: FakeHub, tmp_path: Path) -> None:
    """Deleting frees the disk, not only the names; the commit stays known."""
    hub = _hub(server, tmp_path)
    files = hub.download(FILES)
    files.delete()
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert max(sizes) < 1000
    assert hub.cached_files(FILES) is None
    assert hub.cached_commit() == files.commit
    assert _contents(hub.download(FILES)) == CONTENT


class Refusal(NamedTuple):
    status: int
    code: str
    message: str


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(401, "GatedRepo", "asks for permission: accept its terms at http"),
        Refusal(403, "GatedRepo", "set HF_TOKEN to a token of that account"),
        Refusal(401, "RepoNotFound", "shows no repository"),
        Refusal(404, "RepoNotFound", "does not exist there, or is private"),
        Refusal(403, "", "answered 403 .* the token in HF_TOKEN may not read it"),
        Refusal(503, "", "answered 503 .* try again later"),
    ],
    ids=lambda refusal: f"{refusal.status}-{refusal.code}",
)
def test_refusals_say_what_to_do(server: FakeHub, tmp_path: Path, refusal: Refusal) -> None:
    """Each way in which the hub refuses becomes one line of advice."""
    server.refusal = (refusal.status, refusal.code)
    with pytest.raises(DownloadError, match=refusal.message) as refused:
        _hub(server, tmp_path).download(FILES)
    assert "\n" not in str(refused.value)


def test_an_unknown_revision_is_named(server: FakeHub, tmp_path: Path) -> None:
    """A revision that the hub does not have is refused by its name."""
    with pytest.raises(DownloadError, match="no revision 'v9': give a branch, a tag or a commit"):
        _hub(server, tmp_path, "v9").download(FILES)


def test_an_unknown_file_is_named(server: FakeHub, tmp_path: Path) -> None:
    """A file that the revision does not have is refused by its name, before any transfer."""
    with pytest.raises(DownloadError, match=r"no file generator/z\.bin at revision 'main'"):
        _hub(server, tmp_path).download([FILES[0], "generator/z.bin"])
    assert not [request for request in server.requests if request.startswith("GET")]


def test_without_network_the_error_names_the_address(tmp_path: Path) -> None:
    """A closed port fails at once, saying what cannot be reached."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DownloadError, match=f"cannot reach {endpoint} .*check the network"):
        Hub("main", tmp_path, endpoint).download(FILES)


def test_a_server_that_is_no_hub_is_recognised(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer without commit and ETag points at HF_ENDPOINT and proxies."""

    class Portal(NamedTuple):
        commit_hash: str | None = None
        etag: str | None = None

    def answer(url: str, endpoint: str) -> Portal:
        return Portal()

    monkeypatch.setattr(hub_module, "get_hf_file_metadata", answer)
    with pytest.raises(DownloadError, match="does not answer like a Hugging Face hub"):
        _hub(server, tmp_path).download(FILES)


def test_a_disk_without_room_is_noticed_before_the_transfer(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes of what is missing are compared with the free space first."""

    class Usage(NamedTuple):
        free: int = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(DownloadError, match=r"needs 0\.00 GB, but .* has 0\.00 GB free: make room"):
        _hub(server, tmp_path).download(FILES)
    assert not [request for request in server.requests if request.startswith("GET")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of .* is full: make room"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "cannot write to /x: Permission",
        ),
        (OSError("Consistency check failed"), r"transfer of generator/a\.bin broke off: run"),
    ],
    ids=["disk full", "permission", "inconsistent"],
)
def test_trouble_while_writing_is_explained(
    server: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    message: str,
) -> None:
    """What goes wrong on the disk during a transfer says which disk and what to do."""

    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(hub_module, "hf_hub_download", fail)
    with pytest.raises(DownloadError, match=message):
        _hub(server, tmp_path).download(FILES)


DOWNLOAD = f"""
from model.errors import DownloadError
from model.hub import Hub
try:
    print(*Hub().download({FILES!r}).paths)
except DownloadError as error:
    print(error)
"""


def _run_with(environment: dict[str, str]) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    return finished.stdout.strip()


def test_the_clients_own_variables_are_honoured(server: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT says where to fetch from and HF_HOME where to keep."""
    output = _run_with({"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path)})
    paths = [Path(path) for path in output.split()]
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert all(tmp_path / "hub" in path.parents for path in paths)


def test_offline_mode_of_the_client_is_explained(server: FakeHub, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE set nothing is asked for, and the error says so."""
    output = _run_with(
        {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert "HF_HUB_OFFLINE is set: unset it" in output
    assert server.requests == []
