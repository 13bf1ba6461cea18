"""The pages that people open in a browser: the playground at `/`, the documentation at `/docs`.

Beside the other routes of `api`, and never behind a key: the pages hold nothing but themselves, and
ask the API with the key that their user gives them. What they need lies in `web/`, is read once and
served from memory. Its address carries a digest of all of it, so that browsers keep it for good and
no page ever runs with another version's scripts; only the pages themselves are asked for each time.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.errors import NotFound
from service.refusals import JsonRoute

WEB = Path(__file__).parent / "web"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
UNVERSIONED = b'"static/0/'  # how pages name their files on disk
FOR_GOOD = "public, max-age=31536000, immutable"
ASK_FIRST = "no-cache"

# Nothing from elsewhere, nothing inline, nothing built from text: a key is typed into these pages.
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data: blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)
SECURITY = {
    "Content-Security-Policy": "; ".join(POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class File:
    """A file of a page, as it is sent."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class Playground:
    """The files of the pages, and the routes to them."""

    def __init__(self, folder: Path = WEB) -> None:
        raw = {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.suffix in MEDIA_TYPES
        }
        self.version = _digest(raw)
        addressed = b'"static/%s/' % self.version.encode()
        self._files = {
            name: File(content.replace(UNVERSIONED, addressed), MEDIA_TYPES[Path(name).suffix])
            for name, content in raw.items()
        }

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, include_in_schema=False)
        methods = ["GET", "HEAD"]
        router.add_api_route("/", self.playground, methods=methods)
        router.add_api_route("/docs", self.docs, methods=methods)
        router.add_api_route("/static/{version}/{name}", self.file, methods=methods)
        return router

    async def playground(self, request: Request) -> Response:
        return _answer(request, self._files["index.html"], ASK_FIRST)

    async def docs(self, request: Request) -> Response:
        return _answer(request, self._files["docs.html"], ASK_FIRST)

    async def file(self, request: Request, version: str, name: str) -> Response:
        """Answer with a file of a page.

        Raises: NotFound if there is none of this name.
        """
        if name not in self._files or name.endswith(".html"):
            raise NotFound("the pages of this server have no such file")
        # An old page may ask a new server, while servers are replaced: it gets what there is.
        cache = FOR_GOOD if version == self.version else "no-store"
        return _answer(request, self._files[name], cache)


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(b"%s %d\n%s" % (name.encode(), len(content), content))
    return digest.hexdigest()[:16]


def _answer(request: Request, file: File, cache: str) -> Response:
    headers = {**SECURITY, "ETag": file.etag, "Cache-Control": cache}
    if _holds(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _holds(if_none_match: str, etag: str) -> bool:
    """Say whether the client has this version; proxies that compress mark its tag as weak."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags
