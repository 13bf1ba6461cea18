"""The published files, through the Hugging Face client: download, cache, and errors that help.

Called by `zoo.py` to see what is cached and by `conversion.py` to fetch what is not. The client
does the transfer, resumes one that a dropped connection cut short, and keeps its usual cache, so
files that another tool has fetched are not fetched again. What stands here is what it leaves open:
one commit for both files of a model, room on the disk before the first byte, a checksum after the
last, and errors of one line.

A `revision` is a branch, a tag or a commit; only a commit pins the files for good.
"""

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.errors import DownloadError

REPO_ID = "FAR-Amazon/BAR-collections"
DEFAULT_REVISION = "main"

# The client's transport errors descend from those of its HTTP library, which differs by version.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_SHA256 = re.compile(r"[0-9a-f]{64}")

# file, bytes so far, bytes in all (None while the server has not said)
OnProgress = Callable[[str, int, int | None], None]


_UNREACHABLE = (
    "cannot reach {address} ({error}): check the network and any proxy; models that are already "
    "on this machine need no network"
)
# The first that fits an error explains it: a GatedRepoError is a RepositoryNotFoundError as well.
_ADVICE: dict[type[Exception], str] = {
    GatedRepoError: (
        "{repo} asks for permission: accept its terms at {address}/{repo}, then set HF_TOKEN to a "
        "token of that account"
    ),
    RepositoryNotFoundError: (
        "{address} shows no repository {repo}: it does not exist there, or is private; check "
        "HF_ENDPOINT, or set HF_TOKEN to a token that may read it"
    ),
    RevisionNotFoundError: (
        "{repo} has no revision {revision!r}: give a branch, a tag or a commit; the default is "
        + DEFAULT_REVISION
    ),
    RemoteEntryNotFoundError: (
        "{repo} has no file {file} at revision {revision!r}: ask for an earlier revision"
    ),
    OfflineModeIsEnabled: (
        "{file} is not in {cache} and HF_HUB_OFFLINE is set: unset it, or fill the cache on a "
        "machine with a network"
    ),
    FileMetadataError: (
        "{address} does not answer like a Hugging Face hub: check HF_ENDPOINT and any proxy"
    ),
    LocalEntryNotFoundError: _UNREACHABLE,
}
_STATUS_ADVICE = {
    401: "the token in HF_TOKEN is not valid there",
    403: "the token in HF_TOKEN may not read it",
    429: "too many requests; wait some minutes, or set HF_TOKEN",
}


@dataclass(frozen=True)
class Hub:
    """Where published files come from and where they are kept.

    `cache_dir` takes the place of HF_HOME (default ~/.cache/huggingface), `endpoint` that of
    HF_ENDPOINT. The client reads those variables, and HF_TOKEN, by itself.
    """

    revision: str = DEFAULT_REVISION
    cache_dir: Path | None = None
    endpoint: str | None = None

    @property
    def files_dir(self) -> Path:
        """The client's cache of downloaded files."""
        return Path(constants.HF_HUB_CACHE) if self.cache_dir is None else self.cache_dir / "hub"

    @property
    def converted_dir(self) -> Path:
        """Where `conversion.py` keeps what it has converted."""
        assets = constants.HF_ASSETS_CACHE if self.cache_dir is None else self.cache_dir / "assets"
        return Path(assets) / "bar-serve"

    def cached_commit(self) -> str | None:
        """Return the commit that `revision` last stood for on this machine; no network."""
        if constants.REGEX_COMMIT_OID.fullmatch(self.revision) and len(self.revision) == 40:
            return self.revision
        repo = self.files_dir / f"models--{REPO_ID.replace('/', '--')}"
        try:
            return (repo / "refs" / self.revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None

    def cached_files(self, filenames: Sequence[str]) -> "PublishedFiles | None":
        """Return the files if the cache has all of them at `revision`; no network."""
        commit = self.cached_commit()
        paths = [
            try_to_load_from_cache(REPO_ID, name, cache_dir=self.files_dir, revision=commit)
            for name in filenames
            if commit is not None
        ]
        found = [Path(path) for path in paths if isinstance(path, str)]
        if commit is None or len(found) < len(filenames):
            return None
        return PublishedFiles(commit, tuple(found))

    def download(
        self, filenames: Sequence[str], on_progress: OnProgress | None = None
    ) -> "PublishedFiles":
        """Fetch the files that the cache lacks and return all of them, from one commit.

        Without `on_progress` the client draws a bar when stderr is a terminal.
        Raises DownloadError.
        """
        remote = [self._look_up(name) for name in filenames]
        self._check_room(remote)
        first, *rest = filenames
        # The first file is asked for by `revision`, which the client then remembers; the others by
        # the commit that this turned out to be, in case somebody pushes meanwhile.
        paths = [self._fetch(first, self.revision, remote[0], on_progress)]
        commit = paths[0].parents[len(Path(first).parts) - 1].name
        paths += [
            self._fetch(name, commit, file, on_progress)
            for name, file in zip(rest, remote[1:], strict=True)
        ]
        return PublishedFiles(commit, tuple(paths))

    def _look_up(self, filename: str) -> "_RemoteFile":
        url = hf_hub_url(REPO_ID, filename, revision=self.revision, endpoint=self.endpoint)
        with self._explained(filename):
            found = get_hf_file_metadata(url, endpoint=self.endpoint)
            if found.commit_hash is None or found.etag is None:
                raise FileMetadataError(f"no commit or no ETag for {url}")
        cached = try_to_load_from_cache(
            REPO_ID, filename, cache_dir=self.files_dir, revision=found.commit_hash
        )
        return _RemoteFile(found.etag, found.size or 0, isinstance(cached, str))

    def _check_room(self, files: Sequence["_RemoteFile"]) -> None:
        needed = sum(file.num_bytes for file in files if not file.is_cached)
        nearest = next(
            d for d in (self.files_dir, *self.files_dir.absolute().parents) if d.exists()
        )
        free = shutil.disk_usage(nearest).free
        if needed > free:
            raise DownloadError(
                f"the download needs {_size(needed)}, but {nearest} has {_size(free)} free: make "
                "room or choose another cache directory"
            )

    def _fetch(
        self,
        filename: str,
        revision: str,
        remote: "_RemoteFile",
        on_progress: OnProgress | None,
    ) -> Path:
        with self._explained(filename):
            path = Path(
                hf_hub_download(
                    REPO_ID,
                    filename,
                    revision=revision,
                    cache_dir=self.files_dir,
                    endpoint=self.endpoint,
                    tqdm_class=on_progress and _progress_bar(filename, on_progress),
                )
            )
            if not remote.is_cached:
                _check_content(path, remote.etag)
        return path

    @contextmanager
    def _explained(self, filename: str) -> Iterator[None]:
        """Turn what the client raises into a DownloadError that says what to do."""
        try:
            yield
        # The errors of the hub are OSErrors, those of its transport are not.
        except (OSError, _TransportError) as error:
            raise DownloadError(self._explain(error, filename)) from error

    def _explain(self, error: Exception, filename: str) -> str:
        words = {
            "address": self._address,
            "cache": self.files_dir,
            "error": type(error).__name__,
            "file": filename,
            "repo": REPO_ID,
            "revision": self.revision,
        }
        for kind, template in _ADVICE.items():
            if isinstance(error, kind):
                return template.format(**words)
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            advice = _STATUS_ADVICE.get(status, "try again later")
            return f"{self._address} answered {status} for {REPO_ID}: {advice}"
        if not isinstance(error, OSError):
            return _UNREACHABLE.format(**words)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of {self.files_dir} is full: make room or choose another cache"
        if error.errno is not None:
            return f"cannot write to {error.filename or self.files_dir}: {error.strerror}"
        return f"the transfer of {filename} broke off: run the command again"

    @property
    def _address(self) -> str:
        return (self.endpoint or constants.ENDPOINT).rstrip("/")


@dataclass(frozen=True)
class PublishedFiles:
    """Files in the client's cache, all of one commit, in the order in which they were asked for."""

    commit: str
    paths: tuple[Path, ...]

    def delete(self) -> None:
        """Remove the files from the cache; another model that shares one fetches it again."""
        for path in self.paths:
            path.resolve().unlink(missing_ok=True)  # the content, which the cache links to
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _RemoteFile:
    etag: str
    num_bytes: int
    is_cached: bool


def _check_content(path: Path, etag: str) -> None:
    # Large files carry the SHA-256 of their content as their ETag; small ones do not.
    if not _SHA256.fullmatch(etag):
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != etag:
        PublishedFiles("", (path,)).delete()
        raise DownloadError(
            f"{path.name} arrived damaged (its SHA-256 begins with {actual[:8]}, not {etag[:8]}) "
            "and was removed: run the command again"
        )


def _progress_bar(filename: str, on_progress: OnProgress) -> type[Any]:
    """Return a class that the client takes for tqdm and that reports to `on_progress`."""

    class Reporter:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total, self.done = total, initial

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, num_bytes: int = 1) -> None:
            self.done += num_bytes
            on_progress(filename, self.done, self.total)

    return Reporter


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
