"""What shows a stage of a run to people: metrics.csv, curves.png, report.html, trackers, warnings.

Told by the trainer of every row of metrics and every measurement, and by `run_stage.py` how it
ended; the main process alone has it. Everything here can be made again from what the trainer writes
itself.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from training.errors import TrainingStopped
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

    def __init__(self, stage: str, report: Report, trackers: Trackers) -> None:
        self._folder, self._stage = report.folder, stage
        self._report, self._trackers = report, trackers

    def row(self, row: Mapping[str, Any]) -> None:
        self._trackers.row(row)

    def measured(self, step: int, sheet: Path) -> None:
        self._trackers.picture(step, sheet)
        self.refresh("running")

    def refresh(self, state: str, message: str = "") -> None:
        """Write table, curves and report anew."""
        logs = {
            stage.name: MetricsLog(self._folder / stage.name / METRICS_FILE)
            for stage in self._report.stages
        }
        rows = {name: log.read() for name, log in logs.items()}
        if rows[self._stage]:
            logs[self._stage].write_csv(self._folder / self._stage / TABLE_FILE)
            save_curves(
                self._folder / CURVES_FILE, {name: some for name, some in rows.items() if some}
            )
            self._report.write(state, message)

    def finish(self, state: str, message: str = "") -> None:
        """Write everything a last time: the stage has ended."""
        is_last = self._stage == self._report.stages[-1].name
        self.refresh("running" if state == "finished" and not is_last else state, message)
        self._trackers.finish()


@contextmanager
def watched(watch: Watch) -> Iterator[Watch]:
    """Yield the watch of a stage, and tell it how the stage ended."""
    try:
        yield watch
    except TrainingStopped as stopped:
        watch.finish("stopped", str(stopped))
        raise
    except BaseException as error:
        watch.finish("failed", f"{type(error).__name__}: {error}")
        raise
    watch.finish("finished")


@contextmanager
def hearing_warnings(hear: Callable[[str], None]) -> Iterator[None]:
    """Hand on what modules of this package warn of while inside, each text once."""
    heard = set[str]()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in heard:
                heard.add(text)
                hear(text)

    package, listener = logging.getLogger("training"), Listener(logging.WARNING)
    package.addHandler(listener)
    try:
        yield
    finally:
        package.removeHandler(listener)
