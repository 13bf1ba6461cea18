"""`python -m tests.curves`: throughput against batch, latency against load; some eight minutes.

Runs `bar bench engine` at several batches and `bar bench http` at several rates on a server of its
own, writes the two tables of docs/performance.md, and draws them. Nothing else should be running.
`--quick` measures little of the bundled model, to try the script: give it a copy of the document.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.scaling.plots import Curve, draw
from tests.written_tables import table_of, write_table

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
READY_S = 180.0  # that a server may take to be ready
BENCHMARK_S = 900.0  # that one measurement may take

Report = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """What is measured."""

    model: Sequence[str]  # flags of `bar bench engine`
    name: str
    batches: Sequence[int]
    runs: int
    loads: Sequence[float]  # of what the server does at most
    clients: int  # that it takes to find that out
    seconds: float  # of each load


FULL = Scope(
    model=["--model", "bar-b-patch4", "--random-weights"],
    name="bar-b-patch4",
    batches=(1, 2, 4, 8, 16, 32),
    runs=3,
    loads=(0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0),
    clients=32,
    seconds=20.0,
)
QUICK = Scope(
    model=["--model", "digits"],
    name="digits",
    batches=(1, 2),
    runs=1,
    loads=(0.3, 0.6),
    clients=4,
    seconds=2.0,
)


def bar(*arguments: str) -> Report:
    """Run a benchmark, its progress and errors on ours, and return what it reports.

    Raises: what `subprocess` does for one that failed, or took too long.
    """
    command = [sys.executable, "-m", "service", "bench", *arguments, "--json"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=BENCHMARK_S
    )
    report: Report = json.loads(done.stdout)
    return report


@contextmanager
def serving(*flags: str, ready_s: float = READY_S) -> Iterator[str]:
    """Serve the bundled model, on one thread: two would wait for each other whenever the clients
    need a core. Yield the address when it is ready.

    Raises: RuntimeError if it ended before, or was not ready in time; its errors are on ours.
    """
    fixed = ["--port", "0", "--threads", "1", "--log-level", "error"]
    fixed += ["--max-queued-steps", "1000000"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BAR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", *fixed, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        yield _address(process, ready_s)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _address(process: "subprocess.Popen[str]", ready_s: float) -> str:
    assert process.stdout
    late = threading.Timer(ready_s, process.kill)  # which ends its output, and our waiting
    late.start()
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Ready"):
            late.cancel()
            return said[said.index("http://") :].split()[0]
    reason = f"was not ready within {ready_s:g} s" if late.finished.is_set() else "ended"
    late.cancel()
    raise RuntimeError(f"the server {reason}, having said: {said!r}")


def measure_batches(scope: Scope) -> list[Report]:
    """Measure the engine at every batch."""
    reports = []
    for batch in scope.batches:
        images = ["--images", str(max(2 * batch, 4)), "--runs", str(scope.runs)]
        reports.append(bar("engine", *scope.model, "--batch", str(batch), *images))
        _say(f"batch {batch}: {reports[-1]['images_per_s']:.3g} images/s")
    return reports


def measure_loads(scope: Scope) -> list[Report]:
    """Measure how a server answers at every load.

    Raises: RuntimeError if any request failed.
    """
    reports = []
    with serving() as url:
        closed = ("http", "--url", url, "--concurrency", str(scope.clients), "--requests")
        bar(*closed, str(4 * scope.clients))  # every class's prefix is known from here on
        most = float(bar(*closed, str(20 * scope.clients))["images_per_s"])
        _say(f"{scope.clients} clients: {most:.3g} images/s")
        for load in scope.loads:
            rate = load * most
            requests = str(max(20, round(rate * scope.seconds)))
            report = bar("http", "--url", url, "--rate", f"{rate:.3f}", "--requests", requests)
            if report["failed"]:
                raise RuntimeError(f"at {rate:.3g} requests/s some failed: {report['failures']}")
            reports.append({**report, "rate": rate, "load": load})
            _say(f"{rate:.3g} requests/s: p99 {report['p99_ms']:.3g} ms")
    return reports


def batches_table(reports: Sequence[Report]) -> str:
    """Return the engine's table, a column for each batch."""
    rows = [
        ["images/s", *(f"{report['images_per_s']:.3g}" for report in reports)],
        ["ms a step", *(f"{report['ms_per_step']:.3g}" for report in reports)],
        ["share of the roofline", *(f"{report['roofline_share']:.2f}" for report in reports)],
    ]
    return table_of(["batch", *(str(report["batch"]) for report in reports)], rows)


def loads_table(reports: Sequence[Report]) -> str:
    """Return the server's table, a row for each load."""
    rows = [
        [
            f"{report['load']:.0%}",
            f"{report['rate']:.3g}",
            *(f"{report[name]:.0f}" for name in PERCENTILES),
            f"{report['batch_fill']:.2f}",
        ]
        for report in reports
    ]
    return table_of(["load", "requests/s", "p50, ms", "p95, ms", "p99, ms", "batch fill"], rows)


def draw_batches(path: Path, name: str, reports: Sequence[Report]) -> None:
    """Draw images a second over the batch."""
    batches = [report["batch"] for report in reports]
    curve = Curve("engine", batches, [report["images_per_s"] for report in reports])
    title = f"{name}: throughput against batch"
    draw(path, title, [("images/s", [curve])], is_log=[False], x_label="batch")


def draw_loads(path: Path, reports: Sequence[Report]) -> None:
    """Draw the percentiles of the time to an image over the load."""
    rates = [report["rate"] for report in reports]
    curves = [
        Curve(name.removesuffix("_ms"), rates, [report[name] for report in reports])
        for name in PERCENTILES
    ]
    draw(
        path, "digits: latency against load, random arrivals",
        [("ms from a request's due time to its image", curves)],
        is_log=[True], x_label="requests/s", is_x_log=False,
    )  # fmt: skip


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and draw both, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.curves", description=__doc__)
    parser.add_argument("--only", choices=("batches", "loads"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE")
    options = parser.parse_args(argv)
    scope, document = QUICK if options.quick else FULL, options.document
    images = document.parent / "images"
    images.mkdir(exist_ok=True)
    if options.only != "loads":
        reports = measure_batches(scope)
        write_table(document, "batches", batches_table(reports))
        draw_batches(images / "throughput.png", scope.name, reports)
    if options.only != "batches":
        reports = measure_loads(scope)
        write_table(document, "loads", loads_table(reports))
        draw_loads(images / "latency.png", reports)


if __name__ == "__main__":
    main()
