"""Facts of processes whose server is killed, hangs, forgets, is demoted, is full, or is damaged.

Each test runs an API and workers as processes against a real server, reached through a proxy where
the line between them is what fails. `docs/queue.md` names the test of every fault.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from model.config import ImageRequest
from model.zoo import resolve
from service.jobs import Job, JobState
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from tests.service.fault_proxy import FaultProxy
from tests.service.fleet import (
    KEYS,
    Fleet,
    are_images,
    ask,
    ask_for_later,
    asking,
    client_of,
    is_image,
)

pytestmark = pytest.mark.anyio


async def readiness_is(client: httpx.AsyncClient, status: int) -> None:
    """Wait until an API says that it is ready, or not."""
    while (await client.get("/readyz")).status_code != status:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", ["killed", "hanging"])
async def test_an_absent_server_is_503_in_time(fleet: Fleet, fault: str) -> None:
    """While the server is away requests are 503 with Retry-After and do not hang with it, readiness
    fails, liveness stays; what ran meanwhile is stored when it is back, and all is well. That it is
    said in two seconds stands in test_redis_client.py."""
    fleet.lease_s = 2.0
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        assert 200 == (await client.get("/readyz")).status_code
        worker.send_signal(signal.SIGUSR2)
        running = asyncio.create_task(ask(client, 1))
        await fleet.running(1)
        fleet.server.kill() if fault == "killed" else fleet.server.pause()
        worker.send_signal(signal.SIGUSR2)
        reply = await ask(client, 2)
        assert (503, True) == (reply.status_code, "retry-after" in reply.headers)
        await readiness_is(client, 503)
        assert 200 == (await client.get("/livez")).status_code
        fleet.server.start() if fault == "killed" else fleet.server.resume()
        await readiness_is(client, 200)
        assert is_image(await running, 1)
        assert is_image(await ask(client, 3), 3)
    assert 0 == fleet.counter("redelivered")


async def test_an_outage_of_three_seconds_reruns_nothing(fleet: Fleet) -> None:
    """Kill -9 of the server under load, for longer than a lease: everything that was accepted is
    answered, and no job runs twice."""
    fleet.lease_s = 2.0
    workers = [fleet.worker(0.06) for _ in range(2)]
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = asking(client, range(12))
        await fleet.accepted(12)
        await fleet.running(8)
        fleet.server.kill()
        await asyncio.sleep(3)
        fleet.server.start()
        assert await are_images(tasks, range(12))
    assert [None, None] == [worker.poll() for worker in workers]
    assert 12 == fleet.counter("accepted") == fleet.counter("ended:succeeded")
    assert 0 == fleet.counter("redelivered")


async def test_a_server_that_loses_everything_costs_no_answer(fleet: Fleet) -> None:
    """FLUSHALL under load: every waiting client still gets its image."""
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(8))
        await fleet.running(1)
        await fleet.accepted(8)  # later ones would be told that no worker is known any more
        fleet.server.flush()
        worker.send_signal(signal.SIGUSR2)
        assert await are_images(tasks, range(8))


async def test_what_the_server_has_lost_is_unknown(fleet: Fleet) -> None:
    """After FLUSHALL a generation that nobody waited for is 404, at once, also for a client that
    was just asking how it goes; the worker that ran it goes on with others."""
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        worker.send_signal(signal.SIGUSR2)
        path = await ask_for_later(client, 1)
        await fleet.running(1)
        waiting = asyncio.create_task(client.get(path, params={"wait": 30}))
        await asyncio.sleep(0.2)
        fleet.server.flush()
        assert 404 == (await waiting).status_code
        assert 404 == (await client.get(path)).status_code
        worker.send_signal(signal.SIGUSR2)
        while (reply := await ask(client, 2)).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # until the worker has told again that it is there
        assert is_image(reply, 2)
        assert 404 == (await client.get(f"{path}/content")).status_code


def _demote_for_a_moment(fleet: Fleet) -> None:
    fleet.server.command("REPLICAOF", "127.0.0.1", "1")
    time.sleep(0.5)
    fleet.server.command("REPLICAOF", "NO", "ONE")


DISTURBANCES: dict[str, Callable[[Fleet], object]] = {
    "scripts forgotten": lambda fleet: fleet.server.command("SCRIPT FLUSH"),
    "messages cut": lambda fleet: fleet.server.command("CLIENT KILL", "TYPE", "pubsub"),
    "connections cut": lambda fleet: fleet.server.command("CLIENT KILL", "TYPE", "normal"),
    "demoted": _demote_for_a_moment,
}


@pytest.mark.parametrize("name", DISTURBANCES)
async def test_a_disturbed_server_is_not_noticed(fleet: Fleet, name: str) -> None:
    """What passes within a second fails nothing that waits and nothing that comes."""
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        assert is_image(await ask(client, 1), 1)
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(4))
        await fleet.running(1)
        await asyncio.to_thread(DISTURBANCES[name], fleet)
        worker.send_signal(signal.SIGUSR2)
        assert await are_images(tasks, range(4))
        assert is_image(await ask(client, 5), 5)
    assert 6 == fleet.counter("accepted") == fleet.counter("ended:succeeded")
    assert 0 == fleet.counter("redelivered")


async def test_requests_during_a_demotion_wait_for_its_end(fleet: Fleet) -> None:
    """READONLY is an answer of the moment: a request that comes meanwhile succeeds."""
    fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        demoted = asyncio.create_task(asyncio.to_thread(_demote_for_a_moment, fleet))
        await asyncio.sleep(0.1)
        task = asyncio.create_task(ask(client, 1))
        await demoted
        assert is_image(await task, 1)


async def test_a_full_server_is_503_and_what_runs_ends(fleet: Fleet) -> None:
    """Out of memory refuses what comes; running and waiting jobs end with their images, past their
    leases, while the server is still full."""
    fleet.lease_s = 3.0
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(6))  # of which some wait
        await fleet.accepted(6)
        fleet.server.client.config_set("maxmemory", "1")
        reply = await ask(client, 9)
        assert (503, "queue_unavailable") == (reply.status_code, reply.json()["error"]["code"])
        assert "retry-after" in reply.headers
        await asyncio.sleep(4.0)  # longer than a lease
        worker.send_signal(signal.SIGUSR2)
        assert await are_images(tasks, range(6))
        fleet.server.client.config_set("maxmemory", "0")
        assert is_image(await ask(client, 9), 9)
    assert 0 == fleet.counter("redelivered")


async def test_a_damaged_payload_fails_its_job_once(fleet: Fleet) -> None:
    """Whoever damages a job on the server harms that job alone, and no worker."""
    worker = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(1))
        await fleet.running(1)
        tasks += asking(client, range(1, 6))
        await fleet.accepted(6)
        (damaged,) = fleet.ids("ready")[:1]
        fleet.server.client.hset(f"{KEYS}j:{damaged}", "payload", b'{"version":1,"ima')
        worker.send_signal(signal.SIGUSR2)
        replies = await asyncio.gather(*tasks)
    assert [200] * 5 + [500] == sorted(reply.status_code for reply in replies)
    assert (5, 1) == (fleet.counter("ended:succeeded"), fleet.counter("ended:failed"))
    assert (0, None) == (fleet.counter("redelivered"), worker.poll())


@asynccontextmanager
async def another_api(fleet: Fleet) -> AsyncIterator[RedisJobQueue]:
    """Be an API of another version."""
    queue = RedisJobQueue(fleet.server.url, "digits", QueuePolicy(max_queued_cost=99), name="new")
    async with queue.running():
        yield queue


def plain_job(name: str) -> Job:
    """Make a job of one image."""
    image = ImageRequest(class_id=1, seed=1, sampling=resolve("digits").sampling)
    return Job(id=name, images=(image,), num_steps=16, output_format="png", timeout_s=30.0)


async def test_an_old_worker_runs_what_a_newer_api_sends(fleet: Fleet) -> None:
    """Fields that it does not know are ignored; a newer format is left for a newer worker, and
    costs the job none of its attempts."""
    async with another_api(fleet) as api:
        for name in ("more", "newer"):
            await api.admit(plain_job(name))
        payload = fleet.server.client.hget(f"{KEYS}j:more", "payload")
        assert isinstance(payload, bytes)
        values = {**json.loads(payload), "hue": 3}
        fleet.server.client.hset(f"{KEYS}j:more", "payload", json.dumps(values))
        fleet.server.client.hset(f"{KEYS}j:newer", "payload", b'{"version":2}')
        fleet.worker()
        assert JobState.SUCCEEDED is (await api.wait("more")).state
        await asyncio.sleep(2.5)  # long enough for three attempts
        assert JobState.QUEUED is await api.state("newer")
        fleet.server.client.hset(f"{KEYS}j:newer", "payload", payload)  # which a newer worker reads
        assert JobState.SUCCEEDED is (await api.wait("newer")).state
    assert b"1" == fleet.server.client.hget(f"{KEYS}j:newer", "attempts")


async def test_lost_replies_cost_nothing_and_double_nothing(fleet: Fleet) -> None:
    """A line that delays, cuts, and loses replies after their commands were executed: every image
    arrives, was asked for once, made once, and nothing is stranded."""
    fleet.lease_s = 3.0
    async with FaultProxy(fleet.server.port).running() as proxy:
        fleet.url = proxy.url
        await asyncio.to_thread(fleet.worker, 0.01)
        _, url = await asyncio.to_thread(fleet.api)
        proxy.delay_s, proxy.swallow_every, proxy.cut_every = 0.003, 37, 211
        async with client_of(url) as client:
            seeds = range(40)
            while min(proxy.total_swallowed, proxy.total_cuts) < 3:
                assert await are_images(asking(client, seeds), seeds)
                seeds = range(seeds.stop, seeds.stop + 40)
        proxy.swallow_every = proxy.cut_every = 0
        assert min(proxy.total_swallowed, proxy.total_cuts) >= 3
    assert 40 == fleet.counter("accepted") == fleet.counter("ended:succeeded")
    assert (0, 0, 0) == (fleet.size("lease"), fleet.size("ready"), fleet.counter("redelivered"))
