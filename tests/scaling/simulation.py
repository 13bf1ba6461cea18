"""N workers and one Redis server, event by event, at the pace of the service's own constants.

The server is one thread: calls are served in the order in which they come, each for as long as it
was measured to take (costs.py). A worker is K slots that are filled by claims and each give an
image after a fixed time; between, it does what service/worker.py does: it looks for jobs when the
bell rings, when a slot is free again and every second, renews, reports, tells how far it is. What
is left out: the time of the API processes, of which there are as many as are needed, and faults.
"""

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from service.engine_driver import MAX_TURN_S
from service.queue_policy import QueuePolicy
from service.redis_client import BLOCKING_S
from service.redis_watch import RECONCILE_S
from service.redis_work import HEARTBEAT_S
from service.worker import LOOK_AGAIN_S, PROGRESS_INTERVAL_S
from tests.scaling.costs import VerbCosts

POLICY = QueuePolicy(max_queued_cost=1)
MAX_RINGS = 64  # the bell's length, in state.lua


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is simulated. With no `rate` there is always more to do than can be done."""

    num_workers: int
    num_slots: int
    image_s: float  # an image's time in its slot; all slots advance together
    costs: VerbCosts
    rate: float | None = None  # jobs a second, of one image each, at random times
    num_apis: int = 2
    network_s: float = 0.0001  # one way
    lengths: Literal["fixed", "exponential"] = "fixed"  # of images; a real one's is fixed
    progress_s: float = PROGRESS_INTERVAL_S
    # What workers do not do: one with room asks whenever a turn ends, not only when there is news;
    # one without keeps a ring of the bell to itself that it hears, and does not pass it on.
    asks_each_turn: bool = False
    hears_when_full: bool = False
    warm_up_s: float = 10.0
    measured_s: float = 30.0
    seed: int = 0

    @property
    def capacity(self) -> float:
        """Images a second of all workers, were there nothing else."""
        return self.num_workers * self.num_slots / self.image_s


@dataclass(frozen=True)
class Outcome:
    """What came of it, in the time that was measured."""

    images_per_s: float
    waits_s: list[float]  # of each job from its arrival to its slot, sorted
    redis_load: float  # share of the time in which the server was busy
    shares: dict[str, float]  # of its time, by what it did

    @property
    def mean_wait_s(self) -> float:
        return sum(self.waits_s) / len(self.waits_s) if self.waits_s else 0.0

    def wait_s(self, share: float) -> float:
        """Return the wait that this share of the jobs does not exceed."""
        waits = self.waits_s
        return waits[min(len(waits) - 1, int(len(waits) * share))] if waits else 0.0


@dataclass
class _Worker:
    images: list[tuple[float, int]] = field(default_factory=list)  # when full, how many: a heap
    num_running: int = 0
    is_claiming: bool = False
    is_listening: bool = False
    has_news: bool = False
    asked_at: float = -1.0
    turn: int = 0  # number of the turn that is scheduled: an earlier one is void
    progress_due_at: float = 0.0


class Simulation:
    """One run."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario, self._costs = scenario, scenario.costs
        self._rng = random.Random(scenario.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_events = 0
        self._now = 0.0
        self._free_at = 0.0  # when the server has done all that it was asked so far
        self._spent_s: defaultdict[str, float] = defaultdict(float)
        self._workers = [_Worker() for _ in range(scenario.num_workers)]
        self._num_running = 0
        self._listeners: deque[_Worker] = deque()
        self._num_rings = 0
        self._ready: deque[float] = deque()  # when they arrived
        self._waits_s: list[float] = []
        self._num_done = 0

    def run(self) -> Outcome:
        """Simulate, and return what happened after the warm-up."""
        scenario = self._scenario
        for worker in self._workers:  # they did not all start at the same moment
            if scenario.rate is None:
                self._fill(worker)
            self._at(self._rng.random() * BLOCKING_S, self._turn, worker, 0)
        if scenario.costs != VerbCosts.free():
            self._at(0.0, self._housekeeping)
        if scenario.rate:
            self._at(self._rng.expovariate(scenario.rate), self._arrive)
        self._run_until(scenario.warm_up_s)
        backlog_s = self._backlog_s
        self._waits_s, self._num_done = [], 0
        self._spent_s.clear()
        self._run_until(scenario.warm_up_s + scenario.measured_s)
        busy_s = sum(self._spent_s.values()) + backlog_s - self._backlog_s
        return Outcome(
            images_per_s=self._num_done / scenario.measured_s,
            waits_s=sorted(self._waits_s),
            redis_load=busy_s / scenario.measured_s,
            shares={verb: s / scenario.measured_s for verb, s in self._spent_s.items()},
        )

    def _fill(self, worker: _Worker) -> None:
        """Begin amid full work: every slot somewhere in its image."""
        scenario = self._scenario
        ends = [self._rng.random() * scenario.image_s for _ in range(scenario.num_slots)]
        worker.images = [(end, 1) for end in sorted(ends)]
        worker.num_running = scenario.num_slots
        self._num_running += scenario.num_slots

    @property
    def _backlog_s(self) -> float:
        return max(0.0, self._free_at - self._now)

    def _run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self._now, _, act, args = heapq.heappop(self._events)
            act(*args)
        self._now = end

    def _at(self, time: float, act: Callable[..., None], *args: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time, self._num_events, act, args))

    def _call(self, verb: str, cost_s: float) -> float:
        """Ask the server for something; return when it will have done it."""
        self._free_at = max(self._now + self._scenario.network_s, self._free_at) + cost_s
        self._spent_s[verb] += cost_s
        return self._free_at

    # ------------------------------------------------------------------------------ the API

    def _arrive(self) -> None:
        assert self._scenario.rate
        self._at(self._call("jobs", self._costs.admit), self._admitted, self._now)
        self._at(self._now + self._rng.expovariate(self._scenario.rate), self._arrive)

    def _admitted(self, arrived_at: float) -> None:
        self._ready.append(arrived_at)
        self._ring()

    def _ring(self) -> None:
        if not self._listeners:
            self._num_rings = min(MAX_RINGS, self._num_rings + 1)
            return
        worker = self._listeners.popleft()
        worker.is_listening = False
        self._at(self._now + self._scenario.network_s, self._heard, worker)

    # --------------------------------------------------------------------------- the worker

    def _heard(self, worker: _Worker) -> None:
        worker.has_news = True
        if worker.num_running < self._scenario.num_slots:  # a full one does not end its turn
            self._begin_turn(worker, self._now)
        elif not self._scenario.hears_when_full:
            self._ring()

    def _begin_turn(self, worker: _Worker, time: float) -> None:
        worker.turn += 1
        self._at(time, self._turn, worker, worker.turn)

    def _turn(self, worker: _Worker, number: int) -> None:
        if number != worker.turn:
            return
        self._deliver(worker)
        self._tell(worker)
        room = self._scenario.num_slots - worker.num_running
        if not worker.is_listening and (room or self._scenario.hears_when_full):
            self._listen(worker)
        if room and not worker.is_claiming and self._asks(worker):
            worker.is_claiming, worker.has_news, worker.asked_at = True, False, self._now
            self._at(self._call("empty claims", self._costs.claim), self._claim, worker, room)
        if worker.images:
            self._begin_turn(worker, self._turn_end(worker))
        elif not worker.is_claiming:
            self._begin_turn(worker, self._now + BLOCKING_S)

    def _turn_end(self, worker: _Worker) -> float:
        """The end of the next turn in which anything happens."""
        asks = self._scenario.asks_each_turn and worker.num_running < self._scenario.num_slots
        longest_s = MAX_TURN_S if asks else PROGRESS_INTERVAL_S
        return min(worker.images[0][0], self._now + longest_s)

    def _asks(self, worker: _Worker) -> bool:
        is_time = self._now >= worker.asked_at + LOOK_AGAIN_S
        return self._scenario.asks_each_turn or worker.has_news or is_time

    def _listen(self, worker: _Worker) -> None:
        self._call("listening", self._costs.listen)
        if self._num_rings:
            self._num_rings -= 1
            self._at(self._now + 2 * self._scenario.network_s, self._heard, worker)
            return
        worker.is_listening = True
        self._listeners.append(worker)

    def _claim(self, worker: _Worker, room: int) -> None:
        """What the server does with a claim; the worker hears of it a network's way later."""
        if self._scenario.rate is None:
            arrivals = [self._now] * room
        else:
            count = min(room, len(self._ready))
            arrivals = [self._ready.popleft() for _ in range(count)]
        if self._ready:
            self._ring()
        cost_s = self._costs.claimed_job * len(arrivals)
        self._free_at += cost_s
        self._spent_s["jobs"] += cost_s
        self._at(self._now + cost_s + self._scenario.network_s, self._claimed, worker, arrivals)

    def _claimed(self, worker: _Worker, arrivals: list[float]) -> None:
        worker.is_claiming = False
        self._waits_s += [self._now - arrived_at for arrived_at in arrivals]
        worker.num_running += len(arrivals)
        self._num_running += len(arrivals)
        if self._scenario.lengths == "exponential":
            for _ in arrivals:
                end = self._now + self._rng.expovariate(1 / self._scenario.image_s)
                heapq.heappush(worker.images, (end, 1))
        elif arrivals:
            heapq.heappush(worker.images, (self._now + self._scenario.image_s, len(arrivals)))
        if arrivals:
            self._begin_turn(worker, self._turn_end(worker))
        elif not worker.images:
            self._begin_turn(worker, self._now + BLOCKING_S)

    def _deliver(self, worker: _Worker) -> None:
        costs = self._costs
        while worker.images and worker.images[0][0] <= self._now:
            _, count = heapq.heappop(worker.images)
            worker.num_running -= count
            worker.has_news = True
            self._num_running -= count
            for _ in range(count):
                stored_at = self._call("jobs", costs.stage + costs.complete)
                self._at(stored_at, self._answer)

    def _answer(self) -> None:
        """The API reads the result and forgets the job; with no end of work, another comes."""
        costs = self._costs
        again = costs.admit if self._scenario.rate is None else 0.0
        self._call("jobs", costs.read + costs.forget + again)
        self._num_done += 1

    def _tell(self, worker: _Worker) -> None:
        if worker.images and self._now >= worker.progress_due_at:
            cost_s = self._costs.progress + self._costs.progress_job * worker.num_running
            # No sooner than the last was answered.
            answered_at = self._call("progress", cost_s)
            worker.progress_due_at = max(self._now + self._scenario.progress_s, answered_at)

    # ------------------------------------------------------------------- what everybody does

    def _housekeeping(self) -> None:
        """Heartbeats, reaping, renewals, and the looks of the APIs, some of them at a time.

        Nobody asks again before the last answer has come: what waits slows it down.
        """
        scenario, costs = self._scenario, self._costs
        num_workers, num_apis = scenario.num_workers, scenario.num_apis
        interval_s = 0.005
        for verb, cost_s, calls_per_s in (
            ("heartbeats", costs.heartbeat, num_workers / HEARTBEAT_S),
            ("reaping", costs.reap, (num_workers + num_apis) / POLICY.reap_interval_s),
            ("listening", costs.listen, num_workers / BLOCKING_S),
            ("leases", costs.renew, 3 * num_workers / POLICY.lease_s),
            ("leases", costs.renew_job, 3 * self._num_running / POLICY.lease_s),
            ("looks", costs.look_job, (self._num_running + len(self._ready)) / RECONCILE_S),
            ("looks", costs.workers + costs.workers_each * num_workers, num_apis / RECONCILE_S),
        ):
            self._call(verb, cost_s * calls_per_s * interval_s)
        self._at(self._now + interval_s * (1 + self._backlog_s), self._housekeeping)
