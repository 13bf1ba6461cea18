"""Servers to visit: the real one with the bundled model, in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving_digits(*flags: str) -> Iterator[str]:
    """Run `bar serve` on a free port; yield its address when it is ready."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--log-level", "error"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BAR_")}
    process = subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        assert "Ready" in process.stdout.readline()
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)
