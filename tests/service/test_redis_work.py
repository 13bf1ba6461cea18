"""Facts of a worker's end of the queue on a server: what it holds it ends, or hands back."""

import asyncio
from dataclasses import replace

import pytest

from service.errors import QueueUnavailable
from service.jobs import JobState
from service.redis_work import RedisWorkQueue
from tests.service.queue_ends import POLICY, RESULT, close, job, redis_ends
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

PATIENT = replace(POLICY, lease_s=60.0)


async def test_a_result_that_is_not_stored_in_time_is_handed_back(
    redis_server: RedisServer,
) -> None:
    """A worker that is stopped while it stores a result has not lost the job: another one gets it
    at once, without an attempt less and without suspicion."""
    redis_server.flush()
    ends = redis_ends(redis_server.url, PATIENT)
    await ends.api.admit(job("a"))
    work = RedisWorkQueue(redis_server.url, "digits", PATIENT, name="stopping", clock=ends.clock)
    async with work.running():
        (claim,) = await work.claim(1)
        redis_server.pause()
        storing = asyncio.create_task(work.complete(claim, RESULT))
        await asyncio.sleep(0.05)
        storing.cancel()
        await asyncio.wait({storing})
        redis_server.resume()
    fields = redis_server.client.hmget("{bar:digits}:j:a", ["state", "attempts", "crashes"])
    assert [b"queued", b"0", b"0"] == fields
    await close(ends)


async def test_a_claim_that_is_interrupted_strands_nothing(redis_server: RedisServer) -> None:
    """When the server goes away between a claim and the refusal of a damaged job among it, the
    jobs beside that one are taken up as soon as it is back."""
    redis_server.flush()
    ends = redis_ends(redis_server.url, PATIENT)
    for name in "ab":
        await ends.api.admit(job(name))
    redis_server.client.hset("{bar:digits}:j:a", "payload", b"{")

    async def cut_off(*_: object, **__: object) -> str:
        raise QueueUnavailable("the server has just gone")

    work = ends.work
    assert isinstance(work, RedisWorkQueue)
    fail, work._scripts.fail = work._scripts.fail, cut_off  # type: ignore[method-assign]
    assert [] == await ends.claimed()
    work._scripts.fail = fail  # type: ignore[method-assign]
    assert ["b"] == await ends.claimed()
    assert JobState.FAILED is await ends.api.state("a")
    await close(ends)
