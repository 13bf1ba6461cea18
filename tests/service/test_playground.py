"""Facts of the pages as files: how they are served, kept, protected, and what they name."""

import re
from pathlib import Path

import httpx
import pytest

from service.playground import WEB, Playground
from tests.service.harness import error_of, running

pytestmark = pytest.mark.anyio

PAGES = ["/", "/docs"]


def files_named(page: str) -> list[str]:
    """List what a page loads, as it names it."""
    return re.findall(r'(?:src|href)="(static/[^"]+)"', page)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_and_all_it_names_are_served(path: str) -> None:
    """Every file that a page names comes with its media type."""
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    async with running() as h:
        page = await h.client.get(path)
        assert (200, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
        names = files_named(page.text)
        assert len(names) >= 4
        for name in names:
            reply = await h.client.get(f"/{name}")
            assert 200 == reply.status_code, name
            assert types[name.rpartition(".")[2]] == reply.headers["content-type"].split(";")[0]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_asked_for_again_and_its_files_are_not(path: str) -> None:
    """A page must be revalidated; its files, whose address has a digest, are kept for good."""
    async with running() as h:
        page = await h.client.get(path)
        assert "no-cache" == page.headers["cache-control"]
        for name in files_named(page.text):
            reply = await h.client.get(f"/{name}")
            assert "public, max-age=31536000, immutable" == reply.headers["cache-control"]


@pytest.mark.parametrize("mark", ["{}", "W/{}", '"other", {}', "*"])
async def test_a_page_that_has_not_changed_is_not_sent_again(mark: str) -> None:
    """If-None-Match with the tag, alone, weak or in a list, is answered with 304 and no body."""
    async with running() as h:
        tag = (await h.client.get("/")).headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
        again = await h.client.get("/", headers={"if-none-match": mark.format(tag)})
        assert (304, b"", tag) == (again.status_code, again.content, again.headers["etag"])
        other = await h.client.get("/", headers={"if-none-match": '"other"'})
        assert 200 == other.status_code


@pytest.mark.parametrize("path", [*PAGES, "static"])
async def test_pages_let_nothing_from_elsewhere_in(path: str) -> None:
    """Pages and files forbid foreign and inline code, frames, and guesses at types."""
    async with running() as h:
        if path == "static":
            path = f"/{files_named((await h.client.get('/')).text)[0]}"
        headers = (await h.client.get(path)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert ("'none'", "'self'") == (policy["default-src"], policy["script-src"])
    assert ("'self'", "'none'") == (policy["style-src"], policy["frame-ancestors"])
    assert "unsafe" not in headers["content-security-policy"]
    assert "nosniff" == headers["x-content-type-options"]
    assert "no-referrer" == headers["referrer-policy"]


async def test_head_is_answered_without_a_body() -> None:
    """HEAD tells of a page without sending it."""
    async with running() as h:
        page, head = await h.client.get("/"), await h.client.head("/")
    assert (200, b"") == (head.status_code, head.content)
    assert page.headers["etag"] == head.headers["etag"]


async def test_another_version_s_address_still_finds_the_file() -> None:
    """A page of an older server gets today's file, and must not keep it."""
    async with running() as h:
        reply = await h.client.get("/static/0123456789abcdef/app.js")
    assert (200, "no-store") == (reply.status_code, reply.headers["cache-control"])


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "..%2fplayground.py", "%2e%2e%2fplayground.py", "app.js/"]
)
async def test_nothing_else_is_served(name: str) -> None:
    """What is not a file of the pages is 404, however its path is written."""
    async with running() as h:
        reply = await h.client.get(f"/static/0/{name}")
    assert 404 == reply.status_code
    assert "not_found" == error_of(reply)["code"]


async def test_pages_stay_out_of_the_openapi_document() -> None:
    """The OpenAPI document describes the interface, not the pages."""
    async with running() as h:
        paths = (await h.client.get("/openapi.json")).json()["paths"]
    assert not {path for path in paths if path in PAGES or path.startswith("/static")}


async def test_the_documentation_names_every_route_without_a_script() -> None:
    """The table of docs.html has each route of the OpenAPI document, and no other."""
    async with running() as h:
        document = (await h.client.get("/openapi.json")).json()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    text = (WEB / "docs.html").read_text("utf-8")
    table = re.search(r'<table class="routes">(.*?)</table>', text, re.DOTALL)
    assert table
    named = set(re.findall(r'<th scope="row"><code>(\w+ [^<]+)</code>', table[1]))
    aliases = {f"GET {path}" for path in re.findall(r"<code>(/[^<]+)</code>", table[1])}
    assert routes == named | aliases


def test_pages_ask_nobody_else() -> None:
    """No file of the pages has an address of another server; namespaces are names."""
    found = {
        (path.name, address)
        for path in WEB.iterdir()
        for address in re.findall(r"(?:https?:)?//[\w.-]+[\w/]*", path.read_text("utf-8"))
        if re.match(r"https?:", address)
    }
    allowed = {"http://www.w3.org/2000/svg", "http://127.0.0.1"}  # the second in an example
    assert set() == {address for _, address in found} - allowed


def test_a_changed_file_changes_the_version(tmp_path: Path) -> None:
    """The digest in addresses follows names and contents of all files."""
    (tmp_path / "index.html").write_text('<link href="static/0/a.css">')
    (tmp_path / "a.css").write_text("p {}")
    first = Playground(tmp_path).version
    (tmp_path / "a.css").write_text("q {}")
    second = Playground(tmp_path).version
    (tmp_path / "a.css").rename(tmp_path / "b.css")
    assert 3 == len({first, second, Playground(tmp_path).version})


def test_modules_stay_short() -> None:
    """No script or style of the pages is longer than 400 lines."""
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in WEB.iterdir()}
    assert {} == {name: length for name, length in lengths.items() if length > 400}


async def test_a_page_needs_no_more_than_its_files(tmp_path: Path) -> None:
    """Modules import one another by names that are served."""
    names = {path.name for path in WEB.iterdir()}
    for path in WEB.glob("*.js"):
        imported = re.findall(r'from "\./([^"]+)"', path.read_text("utf-8"))
        assert set(imported) <= names, path.name


def test_pages_are_part_of_the_package() -> None:
    """The folder lies inside the package that the wheel holds."""
    import service

    assert service.__file__
    assert Path(service.__file__).parent == WEB.parent


async def test_methods_that_change_something_are_refused() -> None:
    """A page is read; POST is 405 in the envelope."""
    async with running() as h:
        reply: httpx.Response = await h.client.post("/")
    assert (405, "method_not_allowed") == (reply.status_code, error_of(reply)["code"])
