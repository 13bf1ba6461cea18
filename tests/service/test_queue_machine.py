"""The queue against a plain model: whatever happens, in whatever order, the invariants hold.

Every rule may be a script that runs twice; after every rule the whole of the queue is compared
with the model, key by key. I1 to I10 are the names of the invariants in docs/queue.md.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.errors import IdempotencyMismatch, QueueFull, QuotaExceeded
from service.jobs import Claim, JobState
from service.memory_queue import MemoryJobQueue
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.redis_work import RedisWorkQueue
from tests.service.queue_contents import ZSETS, look
from tests.service.queue_ends import RESULT, Ends, close, job, memory_ends, redis_ends
from tests.service.redis_server import RedisServer

POLICY = QueuePolicy(
    max_queued_cost=80, max_owner_jobs=4, max_crashes=3, max_attempts=2,
    record_ttl_s=40.0, answered_ttl_s=15.0,
)  # fmt: skip
OWNERS = ("ann", "bob")
T = TypeVar("T")


@dataclass
class Modelled:
    """What must be true of one job."""

    cost: int
    owner: str
    place: float
    deadline: float
    state: JobState = JobState.QUEUED
    is_delayed_until: float | None = None
    attempts: int = 0
    crashes: int = 0
    claim: Claim | None = None
    leased_until: float = 0.0
    worker: int = -1
    result: bytes | None = None
    kept_until: float = float("inf")
    is_known: bool = True  # its record is there

    @property
    def is_solo(self) -> bool:
        return self.crashes >= POLICY.solo_from_crashes

    @property
    def home(self) -> str:
        if self.state is JobState.RUNNING:
            return "lease"
        if self.state.is_terminal:
            return ""
        if self.is_delayed_until is not None:
            return "delayed"
        return "solo" if self.is_solo else "ready"


class QueueMachine(RuleBasedStateMachine):
    """Rules for a queue with one worker in memory, or two workers on a server."""

    make: Callable[[], tuple[Ends, list[Any]]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ends, self.workers = self.make()
        self.jobs: dict[str, Modelled] = {}
        self.claims: list[Claim] = []
        self.dead: set[str] = set()
        self.reaped_at = self.grace_until = float("-inf")

    def teardown(self) -> None:
        self.run(close(self.ends))
        for worker in self.workers[1:]:
            self.run(worker.disconnect())
        self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @property
    def now(self) -> float:
        return self.ends.clock.now

    @property
    def queued_cost(self) -> int:
        return sum(j.cost for j in self.jobs.values() if j.state is JobState.QUEUED)

    def finish(self, job_id: str, state: JobState) -> None:
        modelled = self.jobs[job_id]
        assert not modelled.state.is_terminal, "I3: a terminal state is entered once"
        modelled.state, modelled.is_delayed_until = state, None
        is_dead = state is JobState.DEAD
        modelled.kept_until = self.now + (POLICY.dead_ttl_s if is_dead else POLICY.record_ttl_s)

    def reap(self) -> None:
        """The model's reaping."""
        if self.now - self.reaped_at > 2 * POLICY.reap_interval_s:
            self.grace_until = self.now + POLICY.lease_s
        self.reaped_at = self.now
        for job_id, j in self.jobs.items():
            if not j.state.is_terminal and self.now >= j.deadline:
                self.finish(job_id, JobState.EXPIRED)
            if j.is_delayed_until is not None and self.now >= j.is_delayed_until:
                j.is_delayed_until = None
        for job_id, j in self.jobs.items():
            is_late = j.state is JobState.RUNNING and self.now >= j.leased_until
            if is_late and self.now >= self.grace_until:
                j.crashes, j.attempts, j.claim = j.crashes + 1, j.attempts - 1, None
                if j.crashes >= POLICY.max_crashes:
                    self.finish(job_id, JobState.DEAD)
                    self.dead.add(job_id)
                else:
                    j.state = JobState.QUEUED

    def forget_late(self) -> None:
        """The model's forgetting."""
        for j in self.jobs.values():
            j.is_known = j.is_known and self.now < j.kept_until

    # Rules.

    @rule(
        images=st.integers(1, 3),
        owner=st.sampled_from(OWNERS),
        priority=st.sampled_from(["low", "normal", "high"]),
        timeout_s=st.sampled_from([15.0, 400.0]),
        times=st.integers(1, 2),
    )
    def admit(self, images: int, owner: str, priority: Any, timeout_s: float, times: int) -> None:
        sent = job(f"j{len(self.jobs):03}", images, timeout_s, owner=owner, priority=priority)
        unfinished = sum(j.owner == owner and not j.state.is_terminal for j in self.jobs.values())
        refused: type[Exception] | None = None
        if self.queued_cost + sent.cost > POLICY.max_queued_cost:
            refused = QueueFull
        elif unfinished >= POLICY.max_owner_jobs:
            refused = QuotaExceeded
        for _ in range(times):
            try:
                self.run(self.ends.api.admit(sent))
                assert refused is None, "I6: the bounds hold"
            except (QueueFull, QuotaExceeded) as error:
                assert type(error) is refused, "I6: the bounds are exact"
        if refused is None:
            self.jobs[sent.id] = Modelled(
                sent.cost, owner, self.now - sent.lead_s, self.now + timeout_s
            )

    @rule(data=st.data(), is_same=st.booleans())
    def admit_again(self, data: st.DataObject, is_same: bool) -> None:
        known = sorted(job_id for job_id, j in self.jobs.items() if j.is_known)
        if not known:
            return
        job_id = data.draw(st.sampled_from(known))
        again = job(job_id, owner=self.jobs[job_id].owner, fingerprint="" if is_same else "other")
        try:
            assert job_id == self.run(self.ends.api.admit(again))
            assert is_same, "an id stands for one request"
        except IdempotencyMismatch:
            assert not is_same, "a known job is admitted again"

    @rule(worker=st.integers(0, 1), limit=st.integers(1, 4))
    def claim(self, worker: int, limit: int) -> None:
        worker %= len(self.workers)
        self.reap()
        held = [j for j in self.jobs.values() if j.claim and j.worker == worker]
        claims = self.run(self._claim(self.workers[worker], limit))
        waiting = sorted(
            (j.crashes if j.is_solo else 0, j.place, i)
            for i, j in self.jobs.items()
            if j.home in ("ready", "solo")
        )
        solo = [i for _, _, i in waiting if self.jobs[i].is_solo]
        ready = [i for _, _, i in waiting if not self.jobs[i].is_solo]
        got = [claim.job.id for claim in claims]
        if any(claim.is_solo for claim in claims):
            assert 1 == len(claims), "a suspect comes alone"
            assert solo[0] == got[0]
            assert [] == [j for j in held if j.state is JobState.RUNNING]
        else:
            assert got == ready[: len(got)], "jobs come by place"
            if not solo and not any(j.is_solo and j.claim for j in self.jobs.values()):
                images = [self.jobs[i].cost // 10 for i in ready]
                expected = sum(1 for n in range(len(ready)) if sum(images[:n]) < limit)
                assert expected == len(got), "nobody claims less or more than asked"
        for claim in claims:
            j = self.jobs[claim.job.id]
            j.state, j.claim, j.worker = JobState.RUNNING, claim, worker
            j.attempts, j.leased_until = j.attempts + 1, self.now + POLICY.lease_s
            self.claims.append(claim)

    async def _claim(self, work: Any, limit: int) -> list[Claim]:
        claims: list[Claim] = await work.claim(limit)
        while isinstance(work, RedisWorkQueue) and work._claiming:  # it had no patience to wait
            await asyncio.wait({work._claiming})
            claims = await work.claim(limit)
        return claims

    def holder(self, claim: Claim) -> Modelled | None:
        j = self.jobs[claim.job.id]
        return j if j.state is JobState.RUNNING and j.claim == claim else None

    @rule(data=st.data(), times=st.integers(1, 2))
    def complete(self, data: st.DataObject, times: int) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        content = f"{claim.token}".encode()
        j = self.holder(claim)
        first = True
        for _ in range(times):
            is_ours = self.run(self._complete(claim, content))
            if j and first:
                assert is_ours
                self.finish(claim.job.id, JobState.SUCCEEDED)
                j.result = content
            elif not j:
                was_it = self.jobs[claim.job.id].result == content
                assert not is_ours or was_it, "I9: a stale token never changes a result"
            first = False

    async def _complete(self, claim: Claim, content: bytes) -> bool:
        result = replace(RESULT, images=(content,))
        work = self.workers[0]
        if isinstance(work, MemoryJobQueue):
            return await work.complete(claim, result)
        # Past the worker's own memory of what it holds: the server must know better.
        work._held = {**work._held, claim.job.id: claim}
        return bool(await work.complete(claim, result))

    @rule(data=st.data(), is_retryable=st.booleans(), times=st.integers(1, 2))
    def fail(self, data: st.DataObject, is_retryable: bool, times: int) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        j = self.holder(claim)
        for _ in range(times):
            work = self.workers[0]
            if isinstance(work, RedisWorkQueue):
                hold = claim.job.id, claim.token
                word = self.run(work._scripts.fail(hold, "no", is_retryable=is_retryable))
                assert (word in ("failed", "retried", "duplicate")) or j is None
            else:
                self.run(work.fail(claim, "no", is_retryable=is_retryable))
        if j and is_retryable and j.attempts < POLICY.max_attempts:
            j.state, j.claim = JobState.QUEUED, None
            j.is_delayed_until = self.now + POLICY.backoff_s * 2 ** (j.attempts - 1)
        elif j:
            self.finish(claim.job.id, JobState.FAILED)

    @rule(data=st.data(), expires=st.booleans())
    def cancel(self, data: st.DataObject, expires: bool) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        j, api = self.jobs[job_id], self.ends.api
        before = None if j.state.is_terminal else j.state
        assert before == self.run(api.expire(job_id) if expires else api.cancel(job_id))
        if before:
            self.finish(job_id, JobState.EXPIRED if expires else JobState.CANCELLED)

    @rule(data=st.data(), times=st.integers(1, 2))
    def forget(self, data: st.DataObject, times: int) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        j, api = self.jobs[job_id], self.ends.api
        forget = api._scripts.forget if isinstance(api, RedisJobQueue) else api.forget
        for _ in range(times):
            self.run(forget(job_id))
        if j.state.is_terminal and j.state is not JobState.DEAD:
            j.kept_until = min(j.kept_until, self.now + POLICY.answered_ttl_s)

    @rule(worker=st.integers(0, 1))
    def release(self, worker: int) -> None:
        worker %= len(self.workers)
        work = self.workers[worker]
        mine = [j for j in self.jobs.values() if j.worker == worker and j.state is JobState.RUNNING]
        if isinstance(work, RedisWorkQueue):
            work._held = {j.claim.job.id: j.claim for j in mine if j.claim}
        self.run(work.release())
        for j in mine:
            j.state, j.claim, j.attempts = JobState.QUEUED, None, j.attempts - 1

    @rule(worker=st.integers(0, 1))
    def renew(self, worker: int) -> None:
        worker %= len(self.workers)
        work = self.workers[worker]
        mine = {i: j for i, j in self.jobs.items() if j.worker == worker and j.home == "lease"}
        if isinstance(work, RedisWorkQueue):
            holds = [(i, j.claim.token) for i, j in mine.items() if j.claim]
            lost = self.run(work._scripts.renew(work.name, holds))
        else:
            lost = self.run(work.revoked(mine))
        for job_id, j in mine.items():
            if self.now >= j.deadline:
                assert job_id in lost
                self.finish(job_id, JobState.EXPIRED)
            else:
                assert job_id not in lost
                j.leased_until = self.now + POLICY.lease_s

    @rule(worker=st.integers(0, 1))
    def kill_worker(self, worker: int) -> None:
        work = self.workers[worker % len(self.workers)]
        if isinstance(work, RedisWorkQueue):
            work._held = {}

    @rule(seconds=st.integers(1, 12), is_gap=st.booleans())
    def advance(self, seconds: int, is_gap: bool) -> None:
        for _ in range(1 if is_gap else seconds):
            self.ends.clock.now += seconds if is_gap else 1
            self.run(self.ends.reap())
            self.reap()
            self.forget_late()

    @rule(data=st.data())
    def retry_dead(self, data: st.DataObject) -> None:
        if not self.dead:
            return
        job_id = data.draw(st.sampled_from(sorted(self.dead)))
        new_id = f"j{len(self.jobs):03}"
        letters = self.run(self.ends.api.dead_letters())
        assert self.dead == {letter.id for letter in letters}
        assert new_id == self.run(self.ends.api.retry_dead(job_id, new_id))
        self.dead.discard(job_id)
        old = self.jobs[job_id]
        (letter,) = (letter for letter in letters if letter.id == job_id)
        assert letter.job is not None
        lead_s = letter.job.lead_s
        self.jobs[new_id] = Modelled(
            old.cost, old.owner, self.now - lead_s, self.now + letter.job.timeout_s
        )

    # What must hold after every rule.

    @invariant()
    def the_queue_is_as_the_model(self) -> None:
        seen = self.run(look(self.ends, OWNERS))
        for name in ZSETS:
            expected = {i for i, j in self.jobs.items() if j.home == name}
            assert expected == seen.homes[name], f"I1: {name}"
        for owner in OWNERS:
            mine = {i for i, j in self.jobs.items() if j.owner == owner and j.home}
            found = seen.owned.get(owner, set())
            assert (found or set()) == mine if isinstance(found, set) else len(mine) == found, "I2"
        ended = Counter(j.state for j in self.jobs.values() if j.state.is_terminal)
        assert ended == +seen.ended, "I3: each job has exactly one end"
        known = {i: j for i, j in self.jobs.items() if j.is_known}
        expected_results = {i: j.result for i, j in known.items() if j.result}
        assert expected_results == seen.results, "I4: the winner's result, and no other"
        assert len(self.jobs) == seen.accepted, "I5: accepted jobs are all there"
        assert self.queued_cost == seen.cost, "I6: the bound counts what waits"
        assert known.keys() == seen.jobs.keys(), "I8: a record goes when its time has come"
        for owner in OWNERS:
            mine = {i for i, j in known.items() if j.owner == owner}
            assert mine == seen.listed.get(owner, set()), "I8: what is known is listed"
        for job_id, j in known.items():
            assert (j.state, j.attempts, j.crashes) == seen.jobs[job_id], "I7"
            assert j.attempts <= POLICY.max_attempts
            assert j.crashes <= POLICY.max_crashes


def test_in_memory() -> None:
    """The queue in memory is the model, whatever happens."""

    def make() -> tuple[Ends, list[Any]]:
        ends = memory_ends(POLICY)
        return ends, [ends.work]

    run_state_machine_as_test(
        type("Machine", (QueueMachine,), {"make": staticmethod(make)}),
        settings=settings(max_examples=60, stateful_step_count=50, deadline=None),
    )


def test_on_a_server(redis_server: RedisServer) -> None:
    """So is the queue on a server, with two workers."""

    def make() -> tuple[Ends, list[Any]]:
        redis_server.flush()
        ends = redis_ends(redis_server.url, POLICY)
        second = RedisWorkQueue(redis_server.url, "digits", POLICY, name="second", clock=ends.clock)
        return ends, [ends.work, second]

    run_state_machine_as_test(
        type("Machine", (QueueMachine,), {"make": staticmethod(make)}),
        settings=settings(max_examples=25, stateful_step_count=40, deadline=None),
    )
