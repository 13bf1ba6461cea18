"""`bar bench`: speed, and what it costs, measured so that anyone can measure it again."""

import importlib
import sys
from collections.abc import Sequence

BENCHMARKS = {
    "engine": ("service.commands.bench_engine", "how fast this machine draws images"),
    "quality": ("service.commands.bench_quality", "what a precision changes in the results"),
    "http": ("service.commands.bench_http", "how a running service answers under load"),
    "queue": ("service.commands.bench_queue", "what the queue costs, and how soon it wakes"),
}
HELP = "usage: bar bench BENCHMARK [OPTIONS]\n\nbenchmarks:\n" + "".join(
    f"  {name:<8} {text}\n" for name, (_, text) in BENCHMARKS.items()
)


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; 2 after wrong usage.

    Raises: BarError and CheckpointError say in one line what is wrong.
    """
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h"):
        sys.stdout.write(HELP)
        return 0
    if name not in BENCHMARKS:
        sys.stderr.write(f"bar bench: no benchmark {name!r}\n{HELP}")
        return 2
    return int(importlib.import_module(BENCHMARKS[name][0]).main(rest))
