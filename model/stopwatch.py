"""Where an engine's time goes, by stage, for benchmarks and metrics.

Measures on the CPU alone: on a GPU a step is one graph and the decoder runs beside it, so that
stages cannot be told apart as they run. There the benchmark times them one by one.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds spent in each stage so far."""

    def __init__(self, device: torch.device) -> None:
        self._is_running = device.type == "cpu"
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        if not self._is_running:
            yield
            return
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started
