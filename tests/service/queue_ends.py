"""Both ends of a queue on a clock that stands still, in memory or on a real server, for tests."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from model.config import PRESETS, ImageRequest
from service.job_queue import JobQueue, WorkQueue
from service.jobs import Job, JobResult, JobTimings
from service.memory_queue import MemoryJobQueue
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.redis_work import RedisWorkQueue
from tests.service.fakes import FakeClock
from tests.service.redis_server import RedisServer

SAMPLING = PRESETS["digits"].sampling
POLICY = QueuePolicy(max_queued_cost=1000, max_owner_jobs=100)
RESULT = JobResult(
    images=(b"one", b"two\n"),
    timings=JobTimings(queue_s=1.0, generation_s=2.0, decode_s=3.0, encode_s=4.0),
)


def job(name: str, num_images: int = 1, timeout_s: float = 600.0, **values: Any) -> Job:
    """Make a job whose images take 10 steps each."""
    requests = [ImageRequest(class_id=0, seed=i, sampling=SAMPLING) for i in range(num_images)]
    return Job(
        id=name,
        images=tuple(requests),
        num_steps=10,
        output_format="png",
        timeout_s=timeout_s,
        **values,
    )


@dataclass
class Ends:
    """An API's and a worker's end of one queue."""

    api: JobQueue
    work: WorkQueue
    policy: QueuePolicy
    clock: FakeClock = field(default_factory=FakeClock)

    async def claimed(self, limit: int = 100) -> list[str]:
        """Claim jobs and return their ids."""
        return [claim.job.id for claim in await self.work.claim(limit)]

    async def renew(self, *job_ids: str) -> list[str]:
        """Renew the leases of claimed jobs; return those that must be dropped."""
        if isinstance(self.work, RedisWorkQueue):
            work = self.work  # whose thread does this otherwise
            lost = await work._scripts.renew(work.name, work._holds())
            work._drop([hold for hold in work._holds() if hold[0] in lost])
        return await self.work.revoked(job_ids)

    @contextmanager
    def nobody_looking(self) -> Iterator[None]:
        """Let an idle worker wait for the bell alone, for ever."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("memory_queue.IDLE_S", "redis_work.BLOCKING_S"):
                patch.setattr(f"service.{name}", 3600.0)
            if isinstance(self.work, RedisWorkQueue):
                self.work._bell.connection_pool.connection_kwargs["socket_timeout"] = None
            yield

    async def settle(self) -> None:
        """Wait for what the ends do that nobody waits for: progress is told, jobs are forgotten."""
        for end in (self.api, self.work):
            if isinstance(end, RedisJobQueue | RedisWorkQueue):
                while end._chores._tasks:
                    await asyncio.wait(end._chores._tasks)

    async def reap(self) -> None:
        """Do what time alone does."""
        if isinstance(self.api, RedisJobQueue):
            await self.api._scripts.reap()
        else:
            assert isinstance(self.api, MemoryJobQueue)
            await self.api.reap()

    async def advance(self, seconds: float, *, renewing: Sequence[str] = ()) -> None:
        """Let time pass as it does while somebody looks after the queue: without a gap."""
        for _ in range(round(seconds / self.policy.reap_interval_s)):
            self.clock.now += self.policy.reap_interval_s
            if renewing:
                await self.renew(*renewing)
            await self.reap()

    async def lose(self, job_id: str, *, renewing: str) -> None:
        """Let one job's lease expire, and the other's not."""
        if isinstance(self.work, RedisWorkQueue):
            self.work._held = {i: c for i, c in self.work._held.items() if i != job_id}
        await self.advance(2 * self.policy.lease_s, renewing=[renewing])

    async def lose_worker(self) -> None:
        """Let the worker die: what it held is taken back when its leases have expired."""
        if isinstance(self.work, RedisWorkQueue):
            self.work._held = {}
        await self.advance(2 * self.policy.lease_s)


def memory_ends(policy: QueuePolicy = POLICY) -> Ends:
    """Make a queue in memory, which is both of its ends."""
    clock = FakeClock()
    queue = MemoryJobQueue(policy, clock=clock)
    return Ends(queue, queue, policy, clock)


def redis_ends(url: str, policy: QueuePolicy = POLICY, queue: str = "digits") -> Ends:
    """Make both ends of a queue on the server at `url`."""
    clock = FakeClock()
    api = RedisJobQueue(url, queue, policy, name="api", clock=clock)
    work = RedisWorkQueue(url, queue, policy, name="worker", clock=clock)
    work._patience_s = 60.0  # no images run here that a slow claim would hold up
    return Ends(api, work, policy, clock)


@asynccontextmanager
async def ends_of(
    kind: str, request: pytest.FixtureRequest, policy: QueuePolicy = POLICY
) -> AsyncIterator[Ends]:
    """Make both ends of an empty queue in "memory", or on the "redis" server of the tests."""
    if kind == "memory":
        made = memory_ends(policy)
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        server.flush()
        made = redis_ends(server.url, policy)
    yield made
    await close(made)


async def close(ends: Ends) -> None:
    """Close the connections of both ends."""
    for end in (ends.api, ends.work):
        if isinstance(end, RedisJobQueue | RedisWorkQueue):
            await end.disconnect()
