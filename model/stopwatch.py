"""Where an engine's time goes, by stage, for benchmarks and metrics.

On the CPU a stage is timed wherever it runs. On a GPU it costs a synchronisation, so that nothing
is measured unless `enabled` is set, which also has to be before graphs are captured.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds spent in each stage so far."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self.enabled = not self._is_cuda
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        if not self.enabled:
            yield
            return
        start = self._now()
        yield
        self.seconds[stage] += self._now() - start

    def _now(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
