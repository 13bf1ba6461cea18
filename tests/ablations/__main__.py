"""`python -m tests.ablations`: train what has no outcome yet, write docs/ablations.md's figures.

About an hour on one quiet core for everything; interrupted, it goes on from the last cell.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from tests.ablations import report
from tests.ablations.cells import RESULTS, all_cells, keep, read_outcomes
from tests.ablations.run_cell import Laboratory, Scale
from tests.written_tables import write_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "ablations.md"
PICTURE = DOCUMENT.parent / "images" / "heads.png"
TABLES = {
    "heads": report.heads_table,
    "costs": report.costs_table,
    "maskings": report.maskings_table,
    "schedules": report.schedules_table,
    "patches": report.patches_table,
}


def main() -> None:
    """Run the cells that are missing, then render."""
    parser = argparse.ArgumentParser(prog="python -m tests.ablations")
    parser.add_argument("--anew", action="store_true", help="forget all outcomes first")
    parser.add_argument("--runs", type=Path, help="keep the runs' folders here")
    arguments = parser.parse_args()
    if arguments.anew:
        RESULTS.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        train(arguments.runs or Path(folder))
    render()


def train(folder: Path) -> None:
    """Run every cell that has no outcome, on one thread."""
    torch.set_num_threads(1)  # so small a model gains nothing from more
    known = read_outcomes()
    missing = [cell for cell in all_cells() if cell not in known]
    laboratory = Laboratory(folder, Scale())
    for number, cell in enumerate(missing, start=1):
        started_s = time.perf_counter()
        outcome = laboratory.run(cell)
        keep(outcome)
        took_s = time.perf_counter() - started_s
        print(
            f"{number}/{len(missing)} {cell}: distance {outcome.best().frechet:.2f}, "
            f"{took_s:.0f} s",
            flush=True,
        )


def render() -> None:
    """Write the tables and the picture from the outcomes."""
    outcomes = read_outcomes()
    for name, table in TABLES.items():
        rows = table(outcomes)
        write_table(DOCUMENT, name, rows)
        print(f"\n{rows}")
    report.draw_heads(PICTURE, outcomes)


if __name__ == "__main__":
    main()
