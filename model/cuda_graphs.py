"""Token steps captured as CUDA graphs: one launch instead of a few thousand.

A plan's first step simply runs, so that libraries set themselves up and kernels compile outside of
a capture; its second is captured, and from then on replayed. All graphs share one memory pool, and
warm-up captures the largest first, so that smaller ones find their memory there. On the CPU, steps
simply run.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Each holds its own copy of a few thousand launches; requests of all shapes must not pile them up.
MAX_GRAPHS = 64


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

    def __init__(self, run: Callable[[StepPlan], object], device: torch.device) -> None:
        self._run, self.has_graphs, self._device = run, device.type == "cuda", device
        # Least recently used first; None for a plan that ran once and is captured the next time.
        self._graphs: OrderedDict[StepPlan, torch.cuda.CUDAGraph | None] = OrderedDict()
        self._pool: Any = None  # a handle of torch, whose type has no public name
        self._step_before: torch.cuda.Event | None = None

    def __call__(self, plan: StepPlan) -> None:
        """Run a step; on a GPU return when the step before it is done.

        The host stays one step ahead, enough to keep a GPU busy, and no more: an image that
        arrives now takes part in the next step but one.
        """
        if not self.has_graphs:
            self._run(plan)
            return
        if plan in self._graphs:
            graph = self._graphs[plan] or self._capture(plan)
            self._graphs[plan] = graph
            graph.replay()
        else:
            self._run(plan)
            self._graphs[plan] = None
        self._graphs.move_to_end(plan)
        if len(self._graphs) > MAX_GRAPHS:
            self._wait()
            self._graphs.popitem(last=False)
        self._stay_close()

    def warm_up(self, plans: list[StepPlan]) -> None:
        """Run, and on a GPU capture, `plans`, largest first. Only while no slot is occupied."""
        for plan in sorted(plans, key=lambda plan: plan.start - plan.stop):
            self(plan)
            if self.has_graphs:
                self(plan)

    def forget(self) -> None:
        """Drop all graphs and what they hold of the memory."""
        if self._graphs:
            self._wait()
            self._graphs.clear()
        # A pool dies with the last graph in it: torch refuses to capture into it again.
        self._pool = None

    def _capture(self, plan: StepPlan) -> torch.cuda.CUDAGraph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads wait for pixels meanwhile, which a capture in global mode would not survive.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._run(plan)
        return graph

    def _stay_close(self) -> None:
        done = torch.cuda.Event(blocking=True)
        done.record()
        if self._step_before is not None:
            self._step_before.synchronize()
        self._step_before = done

    def _wait(self) -> None:
        """Let running graphs finish before any is destroyed."""
        torch.cuda.synchronize(self._device)
