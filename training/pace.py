"""How fast a run is: images a second, the share of time spent waiting for data, peak memory.

Kept by the trainer. Only steps count, from asking for the examples to changed weights; measuring
and saving do not, so that the figure says how fast this machine trains.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; what getrusage counts in


@dataclass
class Tally:
    """Steps' images, their time, and how much of it was waiting."""

    images: int = 0
    taken_s: float = 0.0
    waited_s: float = 0.0

    def add(self, other: "Tally") -> None:
        self.images += other.images
        self.taken_s += other.taken_s
        self.waited_s += other.waited_s

    @property
    def images_per_s(self) -> float:
        return self.images / self.taken_s if self.taken_s else 0.0

    @property
    def data_wait(self) -> float:
        """The share of time that went into waiting for data."""
        return self.waited_s / self.taken_s if self.taken_s else 0.0


class Pace:
    """Times steps of `batch_size` images; `total` is that of the process."""

    def __init__(
        self, batch_size: int, device: torch.device, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._batch_size, self._device, self._clock = batch_size, device, clock
        self.total, self._recent = Tally(), Tally()

    @contextmanager
    def step(self) -> Iterator[Callable[[], None]]:
        """Time a step; what is yielded is called when the examples are there."""
        began_s, tally = self._clock(), Tally(images=self._batch_size)

        def fetched() -> None:
            tally.waited_s = self._clock() - began_s

        yield fetched
        tally.taken_s = self._clock() - began_s
        self.total.add(tally)
        self._recent.add(tally)

    def take(self) -> dict[str, float]:
        """Return the figures since the last time, and the peak of memory so far."""
        recent, self._recent = self._recent, Tally()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        figures = {
            "images_per_s": round(recent.images_per_s, 3),
            "data_wait": round(recent.data_wait, 4),
            "memory_mb": round(peak / 1e6, 1),
        }
        if self._device.type == "cuda":
            on_gpu = torch.cuda.max_memory_allocated(self._device)
            figures["gpu_memory_mb"] = round(on_gpu / 1e6, 1)
        return figures
