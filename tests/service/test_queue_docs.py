"""Facts of docs/queue.md: what it says is in the code, and what it promises has a test."""

import ast
import re
from pathlib import Path

import pytest

from service import queue_keys
from tests.service.redis_server import ACCESS

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "queue.md").read_text("utf-8")
FILES = ("test_processes.py", "test_faults.py", "test_rolling_restart.py")


def names_of_tests() -> set[str]:
    """Return the names of all tests in the files that the document names."""
    trees = [ast.parse((HERE / name).read_text("utf-8")) for name in FILES]
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    }


def faults() -> list[tuple[str, str]]:
    """Return each fault of the table, and the test that it names."""
    rows = re.findall(r"^\| (.+?) \| .+ \| `(test_\w+)` \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == DOCUMENT.count("| `test_")
    return rows


@pytest.mark.parametrize(("fault", "name"), faults())
def test_every_fault_has_its_test(fault: str, name: str) -> None:
    """The test that a line names is there."""
    assert name in names_of_tests()


def test_the_table_of_faults_is_whole() -> None:
    """What must be survived, in the document's words, and none of it forgotten."""
    wanted = {
        "worker is killed", "worker is paused", "step hangs", "kills its workers",
        "SIGTERM to a worker", "SIGTERM to an API", "API is killed", "server is killed",
        "loses its data", "away, or hangs", "replies are lost", "SCRIPT FLUSH", "CLIENT KILL",
        "replica", "server is full", "queue is full", "owner has too many", "client leaves",
        "old worker", "payload is damaged",
    }  # fmt: skip
    told = " ".join(fault for fault, _ in faults())
    assert set() == {words for words in wanted if words not in told}


def test_the_user_of_the_document_is_the_user_of_the_tests() -> None:
    """Whoever copies the line has the rights that were tested, with a password of their own."""
    (rules,) = re.findall(r"`ACL SETUSER (bar [^`]+)`", DOCUMENT)
    assert ACCESS == rules.replace(">…", ">secret")


def test_the_schema_of_the_document_is_the_codes() -> None:
    """The drawn keys are those of service/queue_keys.py, line by line."""
    lines = [line.strip() for line in (queue_keys.__doc__ or "").splitlines()]
    keys = [line for line in lines if line.startswith("{bar:<queue>}:")]
    assert keys
    assert "\n".join(keys) in DOCUMENT
