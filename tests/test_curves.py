"""Facts of the script that measures the curves of docs/performance.md, without measuring them."""

from pathlib import Path

import pytest

from tests.curves import (
    DOCUMENT,
    batches_table,
    draw_batches,
    draw_loads,
    loads_table,
    serving,
)
from tests.written_tables import read_table, write_table

ENGINE = [
    {"batch": 1, "images_per_s": 0.7912, "ms_per_step": 78.04, "roofline_share": 0.731},
    {"batch": 16, "images_per_s": 4.104, "ms_per_step": 239.2, "roofline_share": 0.5},
]
SERVER = [
    {"load": 0.1, "rate": 8.04, "p50_ms": 51.2, "p95_ms": 70.0, "p99_ms": 81.9, "batch_fill": 0.2},
    {"load": 1.0, "rate": 80.4, "p50_ms": 951.2, "p95_ms": 2040.0, "p99_ms": 3e3, "batch_fill": 1},
]


def test_batches_are_the_columns_of_the_engines_table() -> None:
    """Three figures for each batch."""
    assert (
        "| batch | 1 | 16 |\n"
        "| --- | --- | --- |\n"
        "| images/s | 0.791 | 4.1 |\n"
        "| ms a step | 78 | 239 |\n"
        "| share of the roofline | 0.73 | 0.50 |"
    ) == batches_table(ENGINE)


def test_loads_are_the_rows_of_the_servers_table() -> None:
    """Each with its rate, its percentiles and how full its steps were."""
    assert [
        "| 10% | 8.04 | 51 | 70 | 82 | 0.20 |",
        "| 100% | 80.4 | 951 | 2040 | 3000 | 1.00 |",
    ] == loads_table(SERVER).splitlines()[2:]


def test_both_curves_are_drawn(tmp_path: Path) -> None:
    """From the same reports as the tables."""
    draw_batches(tmp_path / "throughput.png", "tiny", ENGINE)
    draw_loads(tmp_path / "latency.png", SERVER)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_document_has_a_place_for_both(tmp_path: Path) -> None:
    """Tables go between its marks, and nothing else changes."""
    copy = tmp_path / "performance.md"
    copy.write_text(DOCUMENT.read_text("utf-8"), "utf-8")
    before = {name: read_table(copy, name) for name in ("batches", "loads")}
    write_table(copy, "batches", "measured")
    write_table(copy, "loads", loads_table(SERVER))
    assert ("measured", loads_table(SERVER)) == (
        read_table(copy, "batches"),
        read_table(copy, "loads"),
    )
    for name, table in before.items():
        write_table(copy, name, table)
    assert DOCUMENT.read_text("utf-8") == copy.read_text("utf-8")


def test_a_server_that_does_not_start_is_an_error() -> None:
    """It is not waited for, and what it said is told."""
    with pytest.raises(RuntimeError, match="the server ended"), serving("--model", "no-such-model"):
        pass


def test_a_server_that_is_never_ready_is_not_waited_for() -> None:
    """Beyond its time it is killed, and said to be late."""
    with pytest.raises(RuntimeError, match="not ready within"), serving(ready_s=0.01):
        pass
