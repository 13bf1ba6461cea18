"""A small hub of data sets on the loopback interface, for the real client to talk to.

Speaks what looking up and downloading need: `/api/datasets/{repo}/revision/{revision}` with the
files of a commit and its card's data, and HEAD and GET of `/datasets/{repo}/resolve/{commit}/
{file}` as the fake hub of models does.
"""

import hashlib
import json
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.model.fake_hub import HubHandler, LoopbackHub

REPO = "someone/birds"


class FakeDataHub(LoopbackHub):
    """Serves branches of one data set while it is entered; `requests` lists what was asked."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.branches: dict[str, dict[str, bytes]] = {}
        self.card: dict[str, Any] = {}
        self.token: str | None = None  # only who shows it may read

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch stands for, or the commit itself."""
        commits = {branch: _hash(branch, files) for branch, files in self.branches.items()}
        return commits.get(revision, revision if revision in commits.values() else None)

    def files_at(self, commit: str) -> dict[str, bytes]:
        """Return the files of a commit."""
        return next(f for b, f in self.branches.items() if _hash(b, f) == commit)


def _hash(branch: str, files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr((branch, sorted(files.items()))).encode()).hexdigest()


class _Handler(HubHandler):
    hub: FakeDataHub

    def answer(self) -> None:
        """Tell of a revision, or send a file."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.refusal:
            return self.refuse(*self.hub.refusal)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.token not in (None, token):
            return self.refuse(401, "RepoNotFound")
        api, files = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/"
        if path.startswith(api):
            return self._tell(path.removeprefix(api).removeprefix("/revision/") or "main")
        if not path.startswith(files):
            return self.refuse(404, "RepoNotFound")
        commit, _, name = path.removeprefix(files).partition("/")
        return self._send(commit, self.hub.files_at(commit)[name])

    def _tell(self, revision: str) -> None:
        commit = self.hub.commit_of(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = self.hub.files_at(commit)
        told = {
            "id": REPO,
            "sha": commit,
            "siblings": [{"rfilename": name, "size": len(files[name])} for name in files],
            "cardData": self.hub.card,
        }
        return self._body(json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _send(self, commit: str, content: bytes) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        size = str(len(content))
        self._body(content, {"X-Repo-Commit": commit, "X-Linked-Etag": etag, "X-Linked-Size": size})

    def _body(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
