"""How a worker is: in which phase, whether its steps still end, whether its images are right.

The worker writes it; probes and metrics read it, all in one event loop. Liveness and readiness are
different questions. A worker is alive unless work is in flight and nothing has come of it for a
bounded time: then only a new process helps. It is ready once its weights are loaded and a known
image has come out right; that may change, and an unready worker is left alone.
"""

import time
from collections.abc import Callable

from service.jobs import WorkerPhase


class WorkerHealth:
    """The health of one worker, whose work may stand still for no longer than `stall_s`."""

    def __init__(self, stall_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s, self._clock = stall_s, clock
        self.phase: WorkerPhase = "loading"
        self.is_stopping = False
        self.was_ready = False
        self.is_canary_right: bool | None = None  # None before the first check
        self._entered_at = clock()
        self._spent_s: dict[WorkerPhase, float] = {}
        self._checked_at = 0.0
        self._working_since: float | None = None

    def enter(self, phase: WorkerPhase) -> None:
        """Note that the worker is in `phase` from now on."""
        if not self.was_ready:
            self._spent_s = self.startup_s()
        self._entered_at = self._clock()
        self.phase = phase
        self.was_ready = self.was_ready or phase == "ready"

    def startup_s(self) -> dict[WorkerPhase, float]:
        """Return the seconds that each phase of the start took, or has taken so far."""
        spent_s = dict(self._spent_s)
        if not self.was_ready:
            spent_s[self.phase] = spent_s.get(self.phase, 0.0) + self._clock() - self._entered_at
        return spent_s

    def note_work(self, *, is_in_flight: bool) -> None:
        """Note that work begins, has moved by a step, or is done."""
        self._working_since = self._clock() if is_in_flight else None

    def note_canary(self, *, is_right: bool) -> None:
        """Note how the newest check of the known image ended."""
        self.is_canary_right, self._checked_at = is_right, self._clock()

    @property
    def canary_age_s(self) -> float:
        """Seconds since the known image was last checked."""
        return self._clock() - self._checked_at

    @property
    def stalled_s(self) -> float:
        """Seconds for which work in flight has not moved; 0 while nothing is in flight."""
        return 0.0 if self._working_since is None else self._clock() - self._working_since

    def why_not_live(self) -> str | None:
        """Say why only a new process can help; None while the worker is alive."""
        if self.stalled_s <= self._stall_s:
            return None
        return f"no step has ended for {self.stalled_s:.0f} s while images are in flight"

    def why_not_started(self) -> str | None:
        """Say what the start waits for; None once the worker was ready for the first time."""
        return None if self.was_ready else f"the worker is {self.phase.replace('_', ' ')}"

    def why_not_ready(self) -> str | None:
        """Say why the worker claims no jobs; None if it does."""
        if self.is_stopping:
            return "the worker is stopping"
        if self.phase == "unfit":
            return "the known image came out wrong: the weights or the device are broken"
        if self.phase != "ready":
            return self.why_not_started()
        return self.why_not_live()
