"""A small Hugging Face hub on the loopback interface, for the real client to talk to.

Speaks what downloading needs of the hub's protocol: HEAD and GET of `/{repo}/resolve/{revision}/
{file}` with X-Repo-Commit, X-Linked-Etag and X-Linked-Size, byte ranges, and the X-Error-Code
header of refusals. It can be told to refuse, to cut a transfer short and to send wrong bytes.
"""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from model.hub import REPO_ID


class LoopbackHub:
    """A server of `handler` while it is entered; `requests` lists what was asked."""

    def __init__(self, handler: type["HubHandler"]) -> None:
        self.refusal: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (handler,), {"hub": self})
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

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


class HubHandler(BaseHTTPRequestHandler):
    """Refuses as the hub does, and keeps quiet; `answer` is called for HEAD and GET."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Answer the request."""
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def refuse(self, status: int, code: str) -> None:
        """Answer with an error that the hub's client knows by its code."""
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


class FakeHub(LoopbackHub):
    """Serves `files` of commits while it is entered; `requests` lists what was asked."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.cut_after: int | None = None  # bytes of the next transfer, once
        self.damage = False  # send wrong bytes of the right number
        self.ranges: list[str] = []

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit on `branch` and return its name."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class _Handler(HubHandler):
    hub: FakeHub

    def answer(self) -> None:
        """Send a file, or a part of it."""
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.refusal:
            return self.refuse(*self.hub.refusal)
        prefix = f"/{REPO_ID}/resolve/"
        if not self.path.startswith(prefix):
            return self.refuse(404, "RepoNotFound")
        revision, _, name = unquote(self.path.removeprefix(prefix)).partition("/")
        commit = self.hub.branches.get(revision, revision)
        if commit not in self.hub.commits:
            return self.refuse(404, "RevisionNotFound")
        if name not in self.hub.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        return self._send(commit, self.hub.commits[commit][name])

    def _send(self, commit: str, content: bytes) -> None:
        start = 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start:]
        if self.hub.damage:
            body = bytes(byte ^ 0xFF for byte in body)
        if self.hub.cut_after is not None:
            body, self.hub.cut_after = body[: self.hub.cut_after], None
            self.close_connection = True
        self.wfile.write(body)
