"""One line that says how far a stage is, and how long it will still take.

Written by the trainer. On a terminal the line rewrites itself; in a log it is repeated now and
then, so that both a person and a file stay readable.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0
_PART = re.compile(r"_\d+_\d+$")


class Progress:
    """Shows the steps of one stage, from `first_step` (after a resume) to `num_steps`."""

    def __init__(
        self,
        name: str,
        first_step: int,
        num_steps: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.first_step, self.num_steps = name, first_step, num_steps
        self.stream, self.clock = stream, clock
        self.is_terminal = stream.isatty()
        self.started_s = self.paced_s = clock()
        self.shown_s = float("-inf")

    def begin(self) -> None:
        """Estimate time left from now on: what came before the first step is not of its kind."""
        self.paced_s = self.clock()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the line if it is due: at intervals, and at the last step."""
        now_s, is_last = self.clock(), step == self.num_steps
        interval_s = TERMINAL_INTERVAL_S if self.is_terminal else LOG_INTERVAL_S
        if now_s - self.shown_s < interval_s and not is_last:
            return
        self.shown_s = now_s
        line = self.line(step, metrics, now_s - self.started_s)
        if self.is_terminal:
            self.stream.write(f"\r\x1b[K{line}" + ("\n" if is_last else ""))
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def line(self, step: int, metrics: Mapping[str, float], elapsed_s: float) -> str:
        """Return the line for `step`, `elapsed_s` after the start."""
        values = listed(metrics)
        share = f"{self.name} {step}/{self.num_steps} {step / self.num_steps:4.0%}"
        return f"{share}  {values}  {self._time_left(step, elapsed_s)}"

    def _time_left(self, step: int, elapsed_s: float) -> str:
        done, left = step - self.first_step, self.num_steps - step
        if not left:
            return f"took {format_duration(elapsed_s)}"
        paced_s = elapsed_s - (self.paced_s - self.started_s)
        return f"{format_duration(paced_s / done * left)} left" if done else ""

    def note(self, text: str) -> None:
        """Write a line of its own."""
        self.stream.write(f"\r\x1b[K{text}\n" if self.is_terminal else f"{text}\n")
        self.stream.flush()


def listed(metrics: Mapping[str, float]) -> str:
    """Return metrics on a line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def headline(metrics: Mapping[str, float]) -> str:
    """Return metrics on a line, without those of a part such as bit_loss_0_25."""
    return listed({name: value for name, value in metrics.items() if not _PART.search(name)})


def format_duration(seconds: float) -> str:
    """Return seconds as 45s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
