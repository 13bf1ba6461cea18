"""Facts of docs/api.md: it says what the OpenAPI document says, and its examples work."""

import ast
import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.schemas import GenerationRequest
from tests.service.api_reference import PAGE, fill, names_on, operations_in, read_document
from tests.service.harness import listening

SERVICE = PAGE.parents[1] / "service"

needs_curl = pytest.mark.skipif(
    not shutil.which("curl"), reason="the examples need curl: install it"
)


@pytest.fixture(scope="module")
def page() -> str:
    """What people read."""
    return PAGE.read_text("utf-8")


def test_every_table_is_what_the_service_says_of_itself(page: str) -> None:
    """Parameters, bodies, statuses, fields and errors are those of the document: if this fails,
    look at what `python -m tests.service.api_reference` changes."""
    assert fill(page, read_document()) == page


def test_nothing_is_left_out_or_said_twice(page: str) -> None:
    """Every operation and every object has its place on the page, and one only."""
    document = read_document()
    assert sorted(operations_in(document)) == sorted(names_on(page, "operation"))
    assert sorted(document["components"]["schemas"]) == sorted(names_on(page, "fields"))


def test_every_link_leads_somewhere(page: str) -> None:
    """What a link names is a heading of the page, or a file beside it."""
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    targets = set(re.findall(r"\]\(([^)]+)\)", page))
    inside = {target[1:] for target in targets if target.startswith("#")}
    assert set() == inside - headings
    assert all((PAGE.parent / target).is_file() for target in targets - {f"#{i}" for i in inside})


def test_every_error_code_is_explained(page: str) -> None:
    """A code that stands anywhere in the source stands on the page."""
    codes = {
        node.value.value
        for path in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.keyword | ast.Assign)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if (node.arg if isinstance(node, ast.keyword) else ast.unparse(node.targets[0])) == "code"
    }
    assert {"invalid_value", "revision_mismatch"} < codes
    assert set() == {code for code in codes - {"client_disconnected"} if f"`{code}`" not in page}


def test_every_alias_is_named() -> None:
    """Fields that go by another name too say so where they are described."""
    aliases = {
        str(alias)
        for field in GenerationRequest.model_fields.values()
        for alias in getattr(field.validation_alias, "choices", ())
    }
    assert {"tokens_allocation", "randomize_temperature"} < aliases
    assert set() == {alias for alias in aliases if f"`{alias}`" not in PAGE.read_text("utf-8")}


def examples_on(text: str) -> list[str]:
    """Return the examples of a page that ask a running server, as shell commands."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    asking = [(kind, code) for kind, code in found if "127.0.0.1:8000" in code]
    python = f"{sys.executable} - <<'END'\n{{}}END\n"
    commands = [code if kind == "sh" else python.format(code) for kind, code in asking]
    assert commands
    return [command for command in commands if "$KEY" not in command]


async def run_examples(examples: list[str], directory: Path) -> str:
    """Run examples one after the other against a server of their own; return what they print."""
    async with listening() as h:
        base_url = str(h.client.base_url).rstrip("/")
        # A status of 400 and above is a failure here, as it is not for a curious reader.
        lines = ["set -e", 'curl() { command curl -sS --fail-with-body "$@"; echo; }', *examples]
        bash = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            "\n".join(lines).replace("http://127.0.0.1:8000", base_url),
            cwd=directory,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await bash.communicate())[0].decode()
    assert 0 == bash.returncode, output
    return output


def check_png(path: Path) -> None:
    """Fail unless there is a PNG at `path`."""
    with Image.open(path) as image:
        assert "PNG" == image.format


@pytest.mark.anyio
@needs_curl
async def test_every_example_works(page: str, tmp_path: Path) -> None:
    """The page's commands all succeed, one after the other, and leave the images that they name."""
    output = await run_examples(examples_on(page), tmp_path)
    check_png(tmp_path / "seven.png")
    check_png(tmp_path / "five.png")
    assert "event: completed" in output
    assert '"matched":true' in output


@pytest.mark.anyio
@needs_curl
async def test_the_examples_of_the_readme_work(tmp_path: Path) -> None:
    """What a newcomer copies from the README succeeds too."""
    readme = (PAGE.parents[1] / "README.md").read_text("utf-8")
    examples = [
        "\n".join(line for line in example.splitlines() if not line.startswith("bar ")) + "\n"
        for example in examples_on(readme)
    ]
    output = await run_examples(examples, tmp_path)
    check_png(tmp_path / "four.png")
    check_png(tmp_path / "seven.png")
    assert '"matched":true' in output
