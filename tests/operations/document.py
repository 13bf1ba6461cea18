"""docs/operations.md, and the tables in it that are written by the code."""

from collections.abc import Callable
from pathlib import Path

from tests.operations.reference import configuration_table
from tests.operations.sizing import memory_table, redis_table
from tests.written_tables import write_table

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "operations.md"
TABLES: dict[str, Callable[[], str]] = {
    "configuration": configuration_table,
    "memory": memory_table,
    "redis": redis_table,
}


def write() -> None:
    """Write every table into the document anew."""
    for name, table in TABLES.items():
        write_table(PATH, name, table())
