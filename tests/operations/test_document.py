"""docs/operations.md says what the code does: tables, variables, links, flags of commands."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from service.errors import STATUSES
from service.settings import PREFIX, Settings
from tests.operations.document import PATH, ROOT

DOCUMENTS = [
    PATH,
    *(ROOT / "docs" / name for name in ("troubleshooting.md", "scaling.md")),
    ROOT / "k8s" / "README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIABLE = re.compile(rf"\b{PREFIX}[A-Z_]+\b")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchor(heading: str) -> str:
    """Return the anchor that a forge gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    """Every link within the repository leads to a file, and to a heading where it names one."""
    for link in LINK.findall(document.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


@each_document
def test_variables_are_settings(document: Path) -> None:
    """Every BAR_ variable in the text is a setting."""
    named = set(VARIABLE.findall(document.read_text("utf-8"))) - {PREFIX}
    assert set() == {
        name for name in named if name.removeprefix(PREFIX).lower() not in Settings.model_fields
    }


@each_document
def test_metrics_are_documented(document: Path) -> None:
    """Every metric in the text stands in docs/metrics.md."""
    known = set(re.findall(r"\bbar_\w+", (ROOT / "docs" / "metrics.md").read_text("utf-8")))
    named = re.findall(r"`(bar_\w+)[`{]", document.read_text("utf-8"))
    assert set() == set(named) - known


@each_document
def test_commands_exist(document: Path) -> None:
    """Every `bar …` in the text is a subcommand."""
    commands = {path.stem for path in (ROOT / "service" / "commands").glob("*.py")}
    commands |= {path.stem for path in (ROOT / "training" / "commands").glob("*.py")}
    named = re.findall(r"(?:`|^|\s)bar ([a-z]+)\b", document.read_text("utf-8"), re.MULTILINE)
    assert set() == {name for name in named if name not in commands}
    assert (
        "bar" in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    )


def messages() -> list[str]:
    """Return every text in the source, with … where a value is filled in."""
    found = []
    for path in (*(ROOT / "service").rglob("*.py"), *(ROOT / "model").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w+(![rsa])?\}", "…", node.value))
    return found


def test_quoted_messages_are_real() -> None:
    """What the first table of docs/troubleshooting.md quotes, a process can really say."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    table = text.partition("## It does not start")[2].partition("\n## ")[0]
    quoted = [
        q for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for q in row.split(", `")
    ]
    known = messages()
    assert len(quoted) > 10
    for quote in quoted:
        parts = [part.strip("`: ") for part in quote.split("…") if len(part.strip("`: ")) > 3]
        missing = [part for part in parts if not any(part in message for message in known)]
        assert [] == missing, quote


def test_codes_of_refusals_are_real() -> None:
    """Each status and code in docs/troubleshooting.md is one that the service answers with."""
    answers = {(status, kind.code) for kind, status in STATUSES.items()}
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    for status, codes in re.findall(r"^\| (\d{3}) ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", codes):
            assert (int(status), code) in answers
