"""Graphs that only pretend to be captured: a replay runs the step."""

from collections.abc import Callable

import torch

from model.cuda_graphs import StepPlan, StepRunner


class PretendGraph:
    """Replays a plan by running it."""

    def __init__(self, runner: "PretendGraphs", plan: StepPlan) -> None:
        self.runner, self.plan = runner, plan

    def replay(self) -> None:
        self.runner.log.append(("replay", self.plan))
        self.runner._run(self.plan)


class PretendGraphs(StepRunner):
    """What a runner does on a GPU, noted down; nothing runs while a plan is captured."""

    def __init__(self, run: Callable[[StepPlan], object], fail_capture: bool = False) -> None:
        super().__init__(run, torch.device("cpu"))
        self.has_graphs, self.fail_capture = True, fail_capture
        self.log: list[tuple[str, StepPlan]] = []

    def _capture(self, plan: StepPlan) -> torch.cuda.CUDAGraph:
        self.log.append(("capture", plan))
        if self.fail_capture:
            raise torch.OutOfMemoryError
        self._pool = "alive"
        return PretendGraph(self, plan)  # type: ignore[return-value]

    def _stay_close(self) -> None:
        """Nothing runs behind the host's back here."""

    def _wait(self) -> None:
        """Neither does a graph."""
