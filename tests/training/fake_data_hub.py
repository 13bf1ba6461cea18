"""A small hub of data sets on the loopback interface, for the real client to talk to.

Speaks what looking up and downloading need: `/api/datasets/{repo}/revision/{revision}` with the
files of a commit and its card's data, and HEAD and GET of `/datasets/{repo}/resolve/{commit}/
{file}` as the fake hub of models does.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

REPO = "someone/birds"


class FakeDataHub:
    """Serves branches of one data set while it is entered; `requests` lists what was asked."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, bytes]] = {}
        self.card: dict[str, Any] = {}
        self.refusal: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.token: str | None = None  # only who shows it may read
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch stands for, or the commit itself."""
        commits = {branch: _hash(branch, files) for branch, files in self.branches.items()}
        return commits.get(revision, revision if revision in commits.values() else None)

    def files_at(self, commit: str) -> dict[str, bytes]:
        """Return the files of a commit."""
        return next(f for b, f in self.branches.items() if _hash(b, f) == commit)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _hash(branch: str, files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr((branch, sorted(files.items()))).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeDataHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.refusal:
            return self._refuse(*self.hub.refusal)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.token not in (None, token):
            return self._refuse(401, "RepoNotFound")
        api, files = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/"
        if path.startswith(api):
            return self._tell(path.removeprefix(api).removeprefix("/revision/") or "main")
        if not path.startswith(files):
            return self._refuse(404, "RepoNotFound")
        commit, _, name = path.removeprefix(files).partition("/")
        return self._send(commit, self.hub.files_at(commit)[name])

    def _tell(self, revision: str) -> None:
        commit = self.hub.commit_of(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
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

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
