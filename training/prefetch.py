"""Reads the examples of the next step while the current one is computed.

Used by the trainer. One thread is enough: it orders the work, and a data set that decodes pictures
brings threads of its own. Which examples a step has is a function of the step, so reading ahead
cannot change what a run computes.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from torch import Tensor

Examples = tuple[Tensor, ...]


class Prefetch:
    """Hands out the examples of steps in order."""

    def __init__(self, fetch: Callable[[int], Examples], num_steps: int) -> None:
        self._fetch, self._num_steps = fetch, num_steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[Examples]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int) -> Examples:
        """Return the examples of `step`, and begin to read those of the next. Raises what the
        data set raises."""
        future = self._ahead.pop(step, None) or self._thread.submit(self._fetch, step)
        if step + 1 < self._num_steps:
            self._ahead[step + 1] = self._thread.submit(self._fetch, step + 1)
        return future.result()
