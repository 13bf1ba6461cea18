"""Token steps captured as CUDA graphs: one launch instead of a few thousand.

One graph per step plan, captured once and replayed. All share one memory pool, and warm-up captures
the largest first, so that smaller ones find their memory there. On the CPU, steps simply run.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class StepPlan(NamedTuple):
    """The shape of one token step."""

    start: int  # the slots, from here
    stop: int  # to here
    head_branches: int  # 2 with guidance, 1 without
    trunk_branches: int  # likewise; 0 where no image has a next token
    num_rounds: int

    @property
    def slots(self) -> slice:
        return slice(self.start, self.stop)


class StepRunner:
    """Runs token steps by their plans."""

    def __init__(self, run: Callable[[StepPlan], None], device: torch.device) -> None:
        self._run, self._is_cuda = run, device.type == "cuda"
        self._graphs: dict[StepPlan, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._is_cuda else None

    def __call__(self, plan: StepPlan) -> None:
        if not self._is_cuda:
            self._run(plan)
            return
        if plan not in self._graphs:
            self._graphs[plan] = self._capture(plan)
        self._graphs[plan].replay()

    def warm_up(self, plans: list[StepPlan]) -> None:
        """Run and capture `plans`, largest first. Only while no slot is occupied: it writes."""
        for plan in sorted(plans, key=lambda plan: plan.start - plan.stop):
            self._run(plan)  # libraries set themselves up on the first call, not in a capture
            self(plan)

    def forget(self) -> None:
        """Drop all graphs, since a tensor that they use was replaced."""
        self._graphs.clear()

    def _capture(self, plan: StepPlan) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._run(plan)
        return graph
