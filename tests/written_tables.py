"""Tables in documents that are written by code, between two marks that a reader does not see."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def table_of(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _between_marks(name: str) -> re.Pattern[str]:
    marks = f"<!-- {name}: written -->\n\n", f"\n\n<!-- {name}: end -->"
    return re.compile(rf"(?<={marks[0]}).*?(?={marks[1]})", re.DOTALL)


def read_table(path: Path, name: str) -> str:
    """Return the table of that name as it stands in the document."""
    found = _between_marks(name).search(path.read_text("utf-8"))
    assert found, f"{path.name} has no marks for the table {name!r}"
    return found[0]


def write_table(path: Path, name: str, table: str) -> None:
    """Put the table of that name into the document."""
    read_table(path, name)
    text = _between_marks(name).sub(lambda _: table, path.read_text("utf-8"))
    path.write_text(text, "utf-8")
