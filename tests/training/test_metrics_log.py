"""metrics.jsonl, and the same as a table."""

import csv
from pathlib import Path

from training.metrics_log import MetricsLog


def test_rows_come_back(tmp_path: Path) -> None:
    """What is appended is read, in order; no file is no rows."""
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    assert [] == log.read()
    log.append({"step": 1, "split": "train", "loss": 0.5})
    log.append({"step": 2, "split": "train", "loss": 0.25})
    assert [0.5, 0.25] == [row["loss"] for row in log.read()]


def test_later_steps_are_forgotten(tmp_path: Path) -> None:
    """After a resume at step 2, rows of later steps are gone, and so is a line cut short."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(5):
        log.append({"step": step, "split": "train"})
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "spl')
    log.forget_after(2)
    log.append({"step": 3, "split": "train"})
    assert [0, 1, 2, 3] == [row["step"] for row in log.read()]


def test_table_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    """Every name is a column, where it first appeared; what a row lacks is empty."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0, "split": "held_out", "bit_loss": 0.7})
    log.append({"step": 1, "split": "train", "loss": 0.5})
    table = tmp_path / "metrics.csv"
    log.write_csv(table)
    log.append({"step": 1, "split": "held_out", "bit_loss": 0.25, "new": 1.5})
    before = table.read_text("utf-8").splitlines()[0]
    log.write_csv(table)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ["step", "split", "bit_loss", "loss", "new"] == list(rows[0])
    assert table.read_text("utf-8").startswith(before)
    assert ["0.7", "", "0.25"] == [row["bit_loss"] for row in rows]
    assert ["0", "1", "1"] == [row["step"] for row in rows]
    assert ["metrics.csv", "metrics.jsonl"] == sorted(path.name for path in tmp_path.iterdir())
