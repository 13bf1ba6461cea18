"""Facts of when a worker asks its queue for jobs: when it hears of one, has room again, or after a
while; and not at every turn."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service import worker as worker_module
from service.jobs import Claim
from service.memory_queue import MemoryJobQueue
from service.redis_work import RedisWorkQueue
from tests.service.fakes import FakeEngine
from tests.service.harness import Harness
from tests.service.routes.conftest import Services, services  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio

WorkQueue = MemoryJobQueue | RedisWorkQueue


class Looks:
    """Counts how often the queue was asked, and may keep the bell from being heard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self._monkeypatch = monkeypatch
        for kind in (MemoryJobQueue, RedisWorkQueue):
            monkeypatch.setattr(kind, "claim", self._counting(kind.claim))

    def _counting(self, claim: Callable[..., Awaitable[list[Claim]]]) -> Callable[..., Any]:
        async def counting(queue: WorkQueue, limit: int, *, has_news: bool = True) -> list[Claim]:
            self.number += has_news
            return await claim(queue, limit, has_news=has_news)

        return counting

    def every(self, seconds: float) -> None:
        """Let workers that hear nothing look after so long."""
        self._monkeypatch.setattr(worker_module, "LOOK_AGAIN_S", seconds)

    def silence(self) -> None:
        """Let no worker hear the bell."""

        async def wait_ready(_: WorkQueue) -> bool:
            await asyncio.sleep(0.01)
            return False

        for kind in (MemoryJobQueue, RedisWorkQueue):
            self._monkeypatch.setattr(kind, "wait_ready", wait_ready)

    def deafen(self) -> None:
        """Let workers hear what they listen to already, and nothing after it."""

        async def wait_ready(_: WorkQueue) -> bool:
            return await asyncio.Event().wait()

        for kind in (MemoryJobQueue, RedisWorkQueue):
            self._monkeypatch.setattr(kind, "wait_ready", wait_ready)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """What workers of this test ask."""
    return Looks(monkeypatch)


async def turns(h: Harness, number: int) -> None:
    """Wait until the engine has made so many more steps."""
    end = len(h.engine.batch_sizes) + number
    while len(h.engine.batch_sizes) < end:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)


async def test_a_worker_that_hears_nothing_asks_nothing(services: Services, looks: Looks) -> None:  # noqa: F811
    """While an image is drawn beside free slots the queue is not asked; a job that comes is claimed
    at the next step all the same."""
    looks.every(3600.0)
    async with services.running(FakeEngine(num_slots=2, step_s=0.03)) as h:  # longer than a turn
        h.engine.num_steps = 10**9
        endless = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        await turns(h, 3)
        before = looks.number
        await turns(h, 20)
        assert before == looks.number
        h.engine.num_steps = len(h.engine.batch_sizes) + 10**9
        second = asyncio.create_task(h.generate(class_id=2))
        await h.until(lambda s: s.jobs_running == 2)
        endless.cancel(), second.cancel()
        await h.until(lambda s: s.jobs_running == 0)


async def test_a_bell_that_is_not_heard_costs_a_while(services: Services, looks: Looks) -> None:  # noqa: F811
    """It is only a hint: workers at rest and at work look by themselves."""
    looks.every(0.05)
    looks.silence()
    async with services.running(FakeEngine(num_slots=2)) as h:
        assert 200 == (await h.generate(class_id=1)).status_code
        h.engine.num_steps = 10**9
        tasks = []
        for number in (1, 2):
            tasks.append(asyncio.create_task(h.generate(class_id=1)))
            await h.until(lambda s, number=number: s.jobs_running == number)  # type: ignore[misc]
        for task in tasks:
            task.cancel()
        await h.until(lambda s: s.jobs_running == 0)


async def test_room_is_filled_as_soon_as_there_is_some(services: Services, looks: Looks) -> None:  # noqa: F811
    """A worker that was full has not heard of what came meanwhile; it asks without being told."""
    looks.every(3600.0)
    async with services.running(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        tasks = [asyncio.create_task(h.generate(class_id=n)) for n in range(5)]
        await h.until(lambda s: s.num_accepted == 5)
        looks.silence()
        h.engine.gate.set()
        assert [200] * 5 == [(await task).status_code for task in tasks]


async def test_a_ring_in_the_last_step_is_heard(services: Services, looks: Looks) -> None:  # noqa: F811
    """A worker that has nothing left to do when it turns to the bell has not missed it."""
    looks.every(3600.0)
    async with services.running(FakeEngine(num_slots=2)) as h:
        h.engine.num_steps = 1
        assert 200 == (await h.generate(class_id=0)).status_code
        h.engine.gate.clear()
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        looks.deafen()
        second = asyncio.create_task(h.generate(class_id=2))
        await h.until(lambda s: s.num_accepted == 3)
        await asyncio.sleep(0.1)  # for the ring to arrive, in a step that stands still
        h.engine.gate.set()
        async with asyncio.timeout(30):
            assert [200, 200] == [(await first).status_code, (await second).status_code]
