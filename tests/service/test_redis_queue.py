"""Facts of the queue on a server: two workers, lost replies, a server that fails in every way."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from service import redis_client
from service.errors import QueueUnavailable
from service.jobs import Claim, IdempotencyKey, JobState, WorkerStatus
from service.queue_keys import Keys
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.redis_work import RedisWorkQueue
from tests.service.fault_proxy import FaultProxy
from tests.service.queue_ends import POLICY, RESULT, Ends, close, job, redis_ends
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

FAST = replace(POLICY, lease_s=1.0, reap_interval_s=0.2, backoff_s=0.05)


@pytest.fixture
async def ends(redis_server: RedisServer) -> AsyncIterator[Ends]:
    """Both ends on a clock that stands still."""
    redis_server.flush()
    made = redis_ends(redis_server.url)
    yield made
    await close(made)


@pytest.fixture
def own_server(tmp_path: Path) -> "Any":
    """A server that the test may kill."""
    with RedisServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def live(
    url: str, policy: QueuePolicy = FAST, **values: Any
) -> AsyncIterator[tuple[RedisJobQueue, RedisWorkQueue]]:
    """Run both ends in real time, as processes do."""
    api = RedisJobQueue(url, "digits", policy, name="api")
    work = RedisWorkQueue(url, "digits", policy, name="worker", **values)
    async with api.running(), work.running():
        yield api, work


async def until(holds: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
    """Wait until `holds` says so, and fail after `seconds`."""
    ends_at = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < ends_at, "it never came true"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def second_worker(ends: Ends, server: RedisServer) -> AsyncIterator[RedisWorkQueue]:
    """Let another worker join, on the same clock."""
    second = RedisWorkQueue(server.url, "digits", ends.policy, name="second", clock=ends.clock)
    try:
        yield second
    finally:
        await second.disconnect()


async def paused_worker_finishes_late(ends: Ends, server: RedisServer) -> None:
    """A worker that slept through its lease stores nothing over the one that took its job."""
    await ends.api.admit(job("a"))
    (late,) = await ends.work.claim(1)
    await ends.advance(20)  # the first worker sleeps, and still believes that it holds the job
    async with second_worker(ends, server) as second:
        (claim,) = await second.claim(1)
        assert not await ends.work.complete(late, replace(RESULT, images=(b"late",)))
        assert JobState.RUNNING is await ends.api.state("a")
        assert None is server.client.get("{bar:digits}:r:a")
        assert await second.complete(claim, RESULT)
    assert RESULT == (await ends.api.wait("a")).result


async def test_a_paused_workers_late_result_is_refused(
    ends: Ends, redis_server: RedisServer
) -> None:
    """The fence is on the server: what the late worker believes does not matter."""
    await paused_worker_finishes_late(ends, redis_server)


async def claim_reply_gets_lost(ends: Ends, server: RedisServer) -> None:
    """The same nonce gets the same jobs, so that a lost reply strands none."""
    await ends.api.admit(job("a"))
    work = ends.work
    assert isinstance(work, RedisWorkQueue)
    lost = await work._scripts.claim("worker", "nonce", 1, is_idle=True)
    again = await work._scripts.claim("worker", "nonce", 1, is_idle=True)
    assert lost == again
    assert ["a"] == [reply.job_id for reply in again]


async def test_what_is_passed_on_is_heard_by_another(ends: Ends, redis_server: RedisServer) -> None:
    """A full worker's word wakes one that waits; it does not stay for ever if nobody does."""
    await ends.work.pass_on()
    bell = "{bar:digits}:bell"
    assert (1, True) == (redis_server.client.llen(bell), redis_server.client.pttl(bell) > 0)
    await ends.work.wait_ready()
    assert 0 == redis_server.client.llen(bell)


async def test_a_lost_claim_reply_strands_nothing(ends: Ends, redis_server: RedisServer) -> None:
    """Asked again with its nonce, the server repeats itself."""
    await claim_reply_gets_lost(ends, redis_server)


async def no_key_is_left(ends: Ends, server: RedisServer) -> None:
    """When all records are gone only counters and workers are left."""
    for name in "abc":
        await ends.api.admit(job(name))
    (claim, *_) = await ends.work.claim(1)
    await ends.work.complete(claim, RESULT)
    await ends.api.cancel("b")
    await ends.advance(700)
    ends.clock.now += POLICY.record_ttl_s
    await ends.reap()
    left: Any = server.client.keys("*")
    assert [b"bell", b"meta", b"w:worker"] == sorted(key.partition(b":digits}:")[2] for key in left)


async def test_nothing_is_left_of_jobs_that_are_forgotten(
    ends: Ends, redis_server: RedisServer
) -> None:
    """No list, set or hash has anything of a job whose record is gone."""
    await no_key_is_left(ends, redis_server)


async def an_id_lives_twice(ends: Ends, server: RedisServer) -> None:
    """A job whose id was another's, of which the server's own clock left nothing, is kept."""
    await ends.api.admit(job("a", timeout_s=2 * POLICY.record_ttl_s))
    await ends.api.cancel("a")
    server.client.delete("{bar:digits}:j:a")
    await ends.api.admit(job("a", timeout_s=2 * POLICY.record_ttl_s))
    ends.clock.now += POLICY.record_ttl_s + 1
    await ends.reap()
    assert JobState.QUEUED is await ends.api.state("a")


async def test_an_old_end_does_not_drop_a_new_job(ends: Ends, redis_server: RedisServer) -> None:
    """Records that went by their own time to live are not dropped again later."""
    await an_id_lives_twice(ends, redis_server)


async def test_a_list_looks_at_so_many_jobs_at_once(ends: Ends, redis_server: RedisServer) -> None:
    """However many there are, no script takes long; entries without a record are cleared away."""
    await ends.api.admit(job("oldest", created_at=1.0))
    strays = {f"gone{n}": 2.0 + n for n in range(12000)}
    redis_server.client.zadd("{bar:digits}:o:anyone", strays)
    await ends.api.admit(job("newest", created_at=1e6))
    jobs = await ends.api.jobs_of("anyone", state=JobState.QUEUED)
    assert ["newest"] == [known.job.id for known in jobs], (
        "the list is bounded: older ones fall off"
    )
    assert 1 == redis_server.client.zcard("{bar:digits}:o:anyone")


async def test_another_api_hears_at_once(redis_server: RedisServer) -> None:
    """Whoever follows a job that another process admitted is told as soon as that one."""
    redis_server.flush()
    other = RedisJobQueue(redis_server.url, "digits", FAST, name="other")
    async with live(redis_server.url) as (api, work), other.running():
        other._watch.reconcile = _never  # type: ignore[method-assign]
        await until(lambda: _listens(redis_server, "other"))
        await api.admit(job("a"), is_awaited=False)
        waiter = asyncio.create_task(other.wait("a"))
        await until(lambda: _is_told(redis_server, "a", b"other"))
        (claim,) = await work.claim(1)
        await work.complete(claim, RESULT)
        assert RESULT == (await waiter).result


async def _never() -> None:
    """Look at nothing."""


async def _listens(server: RedisServer, api: str) -> bool:
    return bool(server.client.pubsub_numsub(f"{{bar:digits}}:ev:{api}")[0][1])


async def _is_told(server: RedisServer, job_id: str, api: bytes) -> bool:
    return bool(server.client.hget(f"{{bar:digits}}:j:{job_id}", "others") == api)


async def test_an_attached_request_survives_lost_data(redis_server: RedisServer) -> None:
    """Of two that wait for one job in two processes, either brings it back."""
    redis_server.flush()
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    other = RedisJobQueue(redis_server.url, "digits", FAST, name="other")
    async with live(redis_server.url) as (api, work), other.running():
        await api.admit(job("a"), idempotency=key)
        assert "a" == await other.admit(job("b"), idempotency=key)
        waiter = asyncio.create_task(other.wait("a"))
        redis_server.flush()
        await until(lambda: api.state("a"))
        claims: list[Claim] = []
        while not claims:
            claims = await work.claim(1)
        await work.complete(claims[0], RESULT)
        assert RESULT == (await waiter).result


async def test_an_ending_api_stops_only_what_nobody_else_wants(redis_server: RedisServer) -> None:
    """Jobs that it attached to, or that may be asked for again elsewhere, go on."""
    redis_server.flush()
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    async with live(redis_server.url) as (api, _):
        other = RedisJobQueue(redis_server.url, "digits", FAST, name="other")
        async with other.running():
            await api.admit(job("mine"))
            await other.admit(job("mine"))
            await other.admit(job("alone"))
            await other.admit(job("keyed"), idempotency=key)
            await other.admit(job("put", fingerprint="f"))
            waiters = [asyncio.create_task(other.wait(i)) for i in ("mine", "keyed")]
            await asyncio.sleep(0.05)  # they wait, or are about to
            await other.close()
            assert [JobState.CANCELLED] * 2 == [(await waiter).state for waiter in waiters]
        assert JobState.CANCELLED is await api.state("alone")
        assert [JobState.QUEUED] * 3 == [await api.state(i) for i in ("mine", "keyed", "put")]


async def test_nobody_awaits_a_job_for_ever(redis_server: RedisServer) -> None:
    """A process that nobody told of a job's end forgets it some time after its deadline."""
    redis_server.flush()
    async with live(redis_server.url) as (api, _):
        await api.admit(job("late", timeout_s=0.01))
        await api.admit(job("a"))
        api._awaited["late"] = replace(api._awaited["late"], admitted_at=time.monotonic() - 60)
        await api._reconcile()
        assert ["a"] == list(api._awaited)


async def test_one_worker_at_a_time_runs_suspects(ends: Ends, redis_server: RedisServer) -> None:
    """While one worker runs a suspect the others carry on with the rest."""
    for name in "ab":
        await ends.api.admit(job(name))
    for _ in range(2):
        await ends.work.claim(2)
        await ends.lose_worker()
    await ends.api.admit(job("c"))
    await ends.api.admit(job("d"))
    async with second_worker(ends, redis_server) as second:
        assert ["a"] == await ends.claimed(16)
        assert ["c", "d"] == sorted(claim.job.id for claim in await second.claim(16))


async def test_a_slow_worker_keeps_its_turn(ends: Ends, redis_server: RedisServer) -> None:
    """Who empties its slots for a suspect gets it, however long that takes: were the turn lost to
    the next busy worker, and by that one again, the suspect would wait for ever."""
    await ends.api.admit(job("c"))
    (busy,) = await ends.work.claim(1)
    async with second_worker(ends, redis_server) as second:
        await ends.api.admit(job("a"))
        for _ in range(POLICY.solo_from_crashes):
            assert 1 == len(await second.claim(1))
            second._held = {}
            await ends.advance(2 * POLICY.lease_s, renewing=["c"])
        assert [] == await ends.claimed(1), "its turn is next"
        await ends.api.admit(job("d"))
        assert ["d"] == [claim.job.id for claim in await second.claim(1)]
        for _ in range(3):
            ends.clock.now += POLICY.lease_s / 2
            await ends.renew("c")
            await second._scripts.renew(second.name, second._holds())
            await ends.reap()
        await ends.api.admit(job("e"))
        assert ["e"] == [claim.job.id for claim in await second.claim(1)]
        await ends.work.complete(busy, RESULT)
        assert ["a"] == await ends.claimed(1)


async def test_a_turn_for_nobody_is_not_kept(ends: Ends, redis_server: RedisServer) -> None:
    """When the suspect is gone, whoever emptied its slots for it is not renewed in its turn: the
    next one goes to a worker that is idle."""
    await ends.api.admit(job("c"))
    await ends.work.claim(1)
    async with second_worker(ends, redis_server) as second:
        for name in ("a", "b"):
            await ends.api.admit(job(name))
            for _ in range(POLICY.solo_from_crashes):
                assert 1 == len(await second.claim(1))
                second._held = {}
                await ends.advance(2 * POLICY.lease_s, renewing=["c"])
            if name == "a":
                assert [] == await ends.claimed(1), "its turn is next"
                await ends.api.cancel("a")
                for _ in range(3):
                    await ends.advance(POLICY.lease_s / 2, renewing=["c"])
        assert ["b"] == [claim.job.id for claim in await second.claim(1)]


async def test_a_worker_that_cannot_be_read_hides_no_other(
    ends: Ends, redis_server: RedisServer
) -> None:
    """What a worker of another version says of itself is passed over."""
    await ends.work.report(WorkerStatus(name="worker", phase="ready"))
    keys, client = Keys("digits"), redis.Redis.from_url(redis_server.url)
    client.set(keys.heartbeat("other"), b'{"phase": "dreaming"}')
    client.zadd(keys.workers, {"other": time.time() + 1})
    client.close()
    assert ["worker"] == [worker.name for worker in await ends.api.workers()]


async def test_a_lost_reply_enqueues_nothing_twice(redis_server: RedisServer) -> None:
    """Each verb survives the loss of its reply and happens once."""
    redis_server.flush()
    async with FaultProxy(redis_server.port).running() as proxy, live(proxy.url) as (api, work):
        for name in "ab":
            proxy.num_swallowed = 1
            await api.admit(job(name))
        proxy.num_swallowed = 1
        claims: list[Claim] = []
        while len(claims) < 2:
            claims += await work.claim(2 - len(claims))
        proxy.num_swallowed = 1
        assert await work.complete(claims[0], RESULT)
        proxy.num_swallowed = 1
        await work.fail(claims[1], "broken")
        stats = await api.stats()
        assert (2, 0, 0) == (stats.num_accepted, stats.jobs_waiting, stats.jobs_running)
        assert 1 == stats.num_ended[JobState.SUCCEEDED] == stats.num_ended[JobState.FAILED]


async def test_cuts_and_delays_are_survived(redis_server: RedisServer) -> None:
    """Connections that break in the middle of everything cost no job and double none."""
    redis_server.flush()
    async with FaultProxy(redis_server.port).running() as proxy, live(proxy.url) as (api, work):
        proxy.delay_s, proxy.cut_every = 0.005, 100
        stop = asyncio.Event()

        async def serve() -> None:
            while not stop.is_set():
                await work.revoked([])  # as workers do: what was lost meanwhile is dropped first
                for claim in await work.claim(4):
                    await work.complete(claim, RESULT)
                await asyncio.sleep(0.001)

        serving = asyncio.create_task(serve())
        names = list[str]()
        while len(names) < 30 or proxy.total_cuts < 5:
            names.append(f"j{len(names)}")
            await api.admit(job(names[-1]))
        outcomes = await asyncio.gather(*map(api.wait, names))
        stop.set()
        await serving
        assert {JobState.SUCCEEDED} == {outcome.state for outcome in outcomes}
        assert len(names) == (await api.stats()).num_ended[JobState.SUCCEEDED]


async def test_a_waiter_hears_at_once(redis_server: RedisServer) -> None:
    """From stored to told takes a message, not a look each second."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        api._watch.reconcile = _never  # type: ignore[method-assign]
        await until(lambda: _listens(redis_server, "api"))
        await api.admit(job("a"))
        waiter = asyncio.create_task(api.wait("a"))
        await asyncio.sleep(0.05)
        (claim,) = await work.claim(1)
        await work.complete(claim, RESULT)
        assert RESULT == (await waiter).result


async def test_lost_messages_cost_no_answer(redis_server: RedisServer) -> None:
    """What is said while the line for messages is down is known by looking."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        await api.admit(job("a"))
        waiter = asyncio.create_task(api.wait("a"))
        (claim,) = await work.claim(1)
        await until(lambda: _listens(redis_server, "api"))
        redis_server.command("CLIENT KILL", "TYPE", "pubsub")
        await work.complete(claim, RESULT)
        assert JobState.SUCCEEDED is (await waiter).state


async def test_forgotten_scripts_are_sent_again(redis_server: RedisServer) -> None:
    """SCRIPT FLUSH is nobody's concern."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        await api.admit(job("a"))
        redis_server.client.script_flush()
        (claim,) = await work.claim(1)
        redis_server.client.script_flush()
        assert await work.complete(claim, RESULT)
        assert RESULT == (await api.wait("a")).result


async def test_a_demoted_server_is_waited_for(redis_server: RedisServer) -> None:
    """A server that is a replica for a moment delays calls and fails none."""
    redis_server.flush()
    async with live(redis_server.url) as (api, _):
        redis_server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            admitting = asyncio.create_task(api.admit(job("a")))
            await asyncio.sleep(0.3)
        finally:
            redis_server.command("REPLICAOF", "NO", "ONE")
        assert "a" == await admitting


async def test_a_corrupt_payload_fails_its_job_once(redis_server: RedisServer) -> None:
    """Whoever damages a job on the server harms that job alone."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        for name in "abc":
            await api.admit(job(name))
        redis_server.client.hset("{bar:digits}:j:b", "payload", b'{"version":1,"images":[{}]}')
        claimed = [claim.job.id for claim in await work.claim(5)]
        assert ["a", "c"] == claimed
        outcome = await api.wait("b")
        assert (JobState.FAILED, "corrupt payload") == (outcome.state, outcome.error)
        assert 1 == (await api.stats()).num_ended[JobState.FAILED]


async def test_unknown_fields_are_ignored_and_newer_versions_left_to_others(
    redis_server: RedisServer,
) -> None:
    """An old worker runs what a new API sends with one field more, and hands back a new format."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        for name in "ab":
            await api.admit(job(name))
        payload = redis_server.client.hget("{bar:digits}:j:a", "payload")
        assert isinstance(payload, bytes)
        extended = payload.replace(b"{", b'{"hue":3,', 1)
        redis_server.client.hset("{bar:digits}:j:a", "payload", extended)
        redis_server.client.hset("{bar:digits}:j:b", "payload", b'{"version":2}')
        assert ["a"] == [claim.job.id for claim in await work.claim(5)]
        assert JobState.QUEUED is await api.state("b")


async def test_lost_data_is_submitted_again(redis_server: RedisServer) -> None:
    """Whoever still waits gets its images from a server that has lost everything; others 404."""
    redis_server.flush()
    async with live(redis_server.url) as (api, work):
        await api.admit(job("a"))
        await api.admit(job("b"))
        await api.admit(job("async"), is_awaited=False)
        waiters = [asyncio.create_task(api.wait(name)) for name in "ab"]
        (held, *_) = await work.claim(1)
        redis_server.flush()
        await until(lambda: api.state("a"))
        await until(lambda: api.state("b"))
        assert not await work.complete(held, replace(RESULT, images=(b"lost",)))
        with pytest.raises(KeyError):
            await api.wait("async")
        claims: list[Claim] = []
        while len(claims) < 2:
            await work.revoked([])
            claims += await work.claim(2)
        for claim in claims:
            await work.complete(claim, RESULT)
        assert [RESULT, RESULT] == [(await waiter).result for waiter in waiters]


async def test_an_absent_server_is_an_error_in_time(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admission fails whether the server refuses or hangs, and says when to come again. How soon
    is a fact of test_redis_client.py."""
    monkeypatch.setattr(redis_client, "SOCKET_TIMEOUT_S", 0.8)
    async with live(own_server.url) as (api, _):
        own_server.pause()
        await _is_refused(api)
        own_server.resume()
        await api.admit(job("b"))
        own_server.kill()
        await _is_refused(api)
        own_server.start()
        await api.admit(job("c"))
        assert JobState.QUEUED is await api.state("b")


async def _is_refused(api: RedisJobQueue) -> None:
    with pytest.raises(QueueUnavailable) as refused:
        await api.admit(job("a"))
    assert refused.value.retry_after_s


async def test_a_short_outage_reruns_nothing(own_server: RedisServer) -> None:
    """A server that is killed and is back after three seconds finds every job where it was."""
    policy = replace(FAST, lease_s=2.0)
    async with live(own_server.url, policy) as (api, work):
        await api.admit(job("running"))
        await api.admit(job("waiting"))
        (claim,) = await work.claim(1)
        waiter = asyncio.create_task(api.wait("running"))
        await asyncio.sleep(1.1)  # the append-only file is synced each second
        own_server.kill()
        completing = asyncio.create_task(work.complete(claim, RESULT))
        await asyncio.sleep(3)
        own_server.start()
        assert await completing
        assert RESULT == (await waiter).result
        stats = await api.stats()
        assert (0, 1) == (stats.num_redelivered, stats.jobs_waiting)


async def test_running_images_do_not_wait_for_an_absent_server(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that holds jobs is never kept from its next step by a claim; what the server says
    in the end is taken up."""
    redis_server.flush()
    async with live(redis_server.url, replace(FAST, lease_s=60.0)) as (api, work):
        await api.admit(job("a"))
        await work.claim(1)
        answers, claim = asyncio.Event(), work._scripts.claim

        async def late(*args: Any, **values: Any) -> Any:
            await answers.wait()
            return await claim(*args, **values)

        monkeypatch.setattr(work._scripts, "claim", late)
        await api.admit(job("b"))
        for _ in range(10):
            assert [] == await work.claim(1)
            assert [] == await work.revoked(["a"])
        answers.set()
        claims: list[Claim] = []
        while not claims:
            claims = await work.claim(1)
        assert ["b"] == [claim.job.id for claim in claims]


async def test_a_full_server_refuses_and_finishes(own_server: RedisServer) -> None:
    """Out of memory is 503 for what comes and nothing for what runs."""
    async with live(own_server.url) as (api, work):
        await api.admit(job("a"))
        await api.admit(job("waiting"))
        (claim,) = await work.claim(1)
        own_server.client.config_set("maxmemory", "1")
        with pytest.raises(QueueUnavailable, match="full"):
            await api.admit(job("b"))
        await asyncio.sleep(FAST.lease_s + 0.5)
        assert await work.complete(claim, RESULT)
        own_server.client.config_set("maxmemory", "0")
        assert RESULT == (await api.wait("a")).result
        assert 0 == (await api.stats()).num_redelivered


async def test_leases_are_renewed_while_the_worker_lives(redis_server: RedisServer) -> None:
    """A job takes as long as it takes; a busy event loop costs nobody a lease."""
    redis_server.flush()
    async with live(redis_server.url, replace(FAST, lease_s=1.5)) as (api, work):
        await api.admit(job("a"))
        (claim,) = await work.claim(1)
        time.sleep(2.0)  # noqa: ASYNC251 - the event loop is stuck, the thread is not
        await asyncio.sleep(1.0)
        assert [] == await work.revoked(["a"])
        assert await work.complete(claim, RESULT)
        assert 0 == (await api.stats()).num_redelivered


async def test_a_hung_worker_loses_its_jobs_and_is_told(redis_server: RedisServer) -> None:
    """When no step finishes, renewal stops and the process is told to end."""
    redis_server.flush()
    stalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with live(
        redis_server.url, stall_s=0.6, on_stall=lambda: loop.call_soon_threadsafe(stalled.set)
    ) as (api, work):
        await api.admit(job("a"))
        await work.claim(1)
        await stalled.wait()
        await until(lambda: _is_queued(api))


async def _is_queued(api: RedisJobQueue) -> bool:
    return await api.state("a") is JobState.QUEUED


async def test_a_cancelled_job_leaves_its_worker_at_once(redis_server: RedisServer) -> None:
    """A worker hears of a cancellation between two renewals."""
    redis_server.flush()
    async with live(redis_server.url, replace(FAST, lease_s=3600.0)) as (api, work):
        await until(lambda: _controls(redis_server))
        await api.admit(job("a"))
        await work.claim(1)
        await api.cancel("a")
        await until(lambda: work.revoked(["a"]))


async def _controls(server: RedisServer) -> bool:
    return bool(server.client.pubsub_numsub("{bar:digits}:ctl")[0][1])


async def test_workers_say_how_they_are_until_they_leave(redis_server: RedisServer) -> None:
    """What a worker reports is seen by every API, and not after it has ended."""
    redis_server.flush()
    api = RedisJobQueue(redis_server.url, "digits", FAST, name="api")
    work = RedisWorkQueue(redis_server.url, "digits", FAST, name="worker")
    status = WorkerStatus(name="worker", phase="ready", num_slots=4, free_slots=4, step_s=0.5)
    async with work.running():
        await work.report(status)
        assert (status,) == await api.workers()
    await asyncio.sleep(1.1)
    assert () == await api.workers()
    await api.disconnect()


async def test_a_worker_that_stops_hands_back_what_it_holds(redis_server: RedisServer) -> None:
    """The next worker gets the jobs at once, and no attempt is counted."""
    redis_server.flush()
    async with live(redis_server.url, replace(FAST, lease_s=60.0)) as (api, _):
        second = RedisWorkQueue(redis_server.url, "digits", FAST, name="second")
        async with second.running():
            await api.admit(job("a"))
            assert 1 == len(await second.claim(1))
        assert JobState.QUEUED is await api.state("a")
        assert b"0" == redis_server.client.hget("{bar:digits}:j:a", "attempts")
