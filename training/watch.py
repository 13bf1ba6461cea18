"""What shows a stage of a run to people: metrics.csv, curves.png, report.html, trackers.

Told by the trainer of every row of metrics and every measurement; `run_stage.py` says how it
ended. Everything here can be made again from what the trainer writes itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from training.metrics_log import METRICS_FILE, MetricsLog
from training.pictures import save_curves
from training.report import Report
from training.trackers import Trackers

TABLE_FILE = "metrics.csv"
CURVES_FILE = "curves.png"


class Onlooker(Protocol):
    """Whom a trainer tells what happens."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Hear of a row of metrics, which is in the log already."""

    def measured(self, step: int, sheet: Path) -> None:
        """Hear that held-out data was measured and a sheet of samples written."""


class Nobody:
    """Looks on at nothing."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def measured(self, step: int, sheet: Path) -> None: ...


class Watch:
    """Keeps the files of a run's folder that people look at up to date, and tells the trackers."""

    def __init__(
        self, folder: Path, stage: str, earlier: tuple[str, ...], report: Report, trackers: Trackers
    ) -> None:
        self.folder, self.stage, self.report, self.trackers = folder, stage, report, trackers
        self._stages = (*earlier, stage)

    def row(self, row: Mapping[str, Any]) -> None:
        self.trackers.row(row)

    def measured(self, step: int, sheet: Path) -> None:
        self.trackers.picture(step, sheet)
        self.refresh("running")

    def refresh(self, state: str, message: str = "") -> None:
        """Write table, curves and report anew."""
        logs = {name: MetricsLog(self.folder / name / METRICS_FILE) for name in self._stages}
        logs[self.stage].write_csv(self.folder / self.stage / TABLE_FILE)
        save_curves(self.folder / CURVES_FILE, {name: log.read() for name, log in logs.items()})
        self.report.write(state, message)
