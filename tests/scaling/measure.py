"""Measures what each verb costs a real server: seconds of its thread, bytes of its memory.

The verbs are the service's own, one call after the other from one client; what counts is the time
that the server's process says it has computed, so that neither the client nor the network matters.
With many clients at once the server takes several calls from one look at its sockets, and each
costs a little less.
"""

import asyncio
import platform
import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from redis import Redis

from model.config import ImageRequest, SamplingConfig
from service.jobs import EngineCounters, Job, JobProgress, JobResult, JobTimings, WorkerStatus
from service.payloads import encode_result
from service.queue_keys import Keys
from service.queue_policy import QueuePolicy
from service.redis_client import command, commands, connect
from service.redis_reader import RedisReader
from service.redis_scripts import Hold, QueueScripts
from tests.scaling.costs import VerbCosts

NUM_CALLS = 1000
BATCH = 64
RESULT_BYTES = {"digits": 1_000, "image 256": 110_000, "image 512": 440_000}
QUEUE = "measured"
POLICY = QueuePolicy(max_queued_cost=10**9, max_owner_jobs=10**6, lease_s=600)
SAMPLING = SamplingConfig(
    guidance_scale=5.0, temperature=2.5, unmask_schedule=(2, 2, 5, 7), order="raster"
)

Call = Callable[[], Awaitable[object]]


def job() -> Job:
    """Return a job of one image, as a request makes it."""
    image = ImageRequest(class_id=207, seed=secrets.randbelow(2**32), sampling=SAMPLING)
    return Job(
        id=f"gen_{secrets.token_hex(12)}", images=(image,), num_steps=256, output_format="png",
        timeout_s=3600.0, owner="somebody",
    )  # fmt: skip


def result(num_bytes: int) -> bytes:
    """Return a result with one image of that size."""
    timings = JobTimings(queue_s=0.1, generation_s=2.0, decode_s=0.1, encode_s=0.02)
    return encode_result(JobResult(images=(secrets.token_bytes(num_bytes),), timings=timings))


class Measurement:
    """One server, from an empty queue on."""

    def __init__(self, url: str) -> None:
        self._server = Redis.from_url(url)
        self._client = connect(url)
        self._keys = Keys(QUEUE)
        self._scripts = QueueScripts(self._client, self._keys, POLICY)
        self._reader = RedisReader(self._client, self._keys)
        self._idle = 0.0  # seconds of the server for a second in which nobody asks

    async def run(self) -> dict[str, Any]:
        """Return costs by size of result, and bytes."""
        try:
            self._idle = await self._idle_load()
            common = await self._common()
            sized = {
                name: {**common, **await self._of_results(num_bytes)}
                for name, num_bytes in RESULT_BYTES.items()
            }
            seconds = {name: VerbCosts(**costs).to_json() for name, costs in sized.items()}
            return {"server": self._description(), "seconds": seconds, "bytes": await self._bytes()}
        finally:
            await self._client.aclose()
            self._server.close()

    def _description(self) -> str:
        info: Any = self._server.info("server")
        return f"Redis {info['redis_version']}, {platform.machine()}, {platform.system()}"

    def _computed_s(self) -> float:
        info: Any = self._server.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    async def _idle_load(self) -> float:
        before = self._computed_s()
        await asyncio.sleep(2)
        return (self._computed_s() - before) / 2

    async def _cost(self, calls: Iterable[Call]) -> float:
        """Return the server's seconds for one of the calls."""
        calls, loop = list(calls), asyncio.get_running_loop()
        before, started = self._computed_s(), loop.time()
        for call in calls:
            await call()
        spent = self._computed_s() - before - self._idle * (loop.time() - started)
        return max(spent, 0.0) / len(calls)

    async def _admit(self, count: int) -> list[Job]:
        jobs = [job() for _ in range(count)]
        for one in jobs:
            await self._admit_one(one)
        return jobs

    async def _admit_one(self, one: Job) -> None:
        await self._scripts.admit(one, api="api", is_forced=False, idempotency=None)

    async def _claim(self, limit: int) -> list[Hold]:
        nonce = secrets.token_hex(8)
        replies = await self._scripts.claim("worker", nonce, limit, is_idle=False)
        return [(reply.job_id, reply.token) for reply in replies]

    async def _common(self) -> dict[str, float]:
        """Measure what does not depend on a result's size."""
        costs: dict[str, float] = {}
        empty = await self._cost([lambda: self._claim(BATCH)] * NUM_CALLS)
        costs["listen"] = await self._listening()
        jobs = [job() for _ in range(NUM_CALLS)]
        costs["admit"] = await self._cost([partial(self._admit_one, one) for one in jobs])
        holds: list[list[Hold]] = []

        async def claim_batch() -> None:
            holds.append(await self._claim(BATCH))

        full = await self._cost([claim_batch] * (NUM_CALLS // BATCH))
        costs["claim"], costs["claimed_job"] = empty, (full - empty) / BATCH
        batch = holds[0]
        assert len(batch) == BATCH
        for name, verb in (("progress", self._progress), ("renew", self._renew)):
            one = await self._cost([partial(verb, batch[:1])] * NUM_CALLS)
            many = await self._cost([partial(verb, batch)] * (NUM_CALLS // 10))
            costs[f"{name}_job"] = (many - one) / (BATCH - 1)
            costs[name] = one - costs[f"{name}_job"]
        costs["reap"] = await self._cost([self._scripts.reap] * NUM_CALLS)
        looks = [("HMGET", self._keys.job(i), "state", "version") for i, _ in batch]
        look = await self._cost([lambda: commands(self._client, looks)] * (NUM_CALLS // 10))
        costs["look_job"] = look / BATCH
        self._server.flushall()
        return {**costs, **await self._workers()}

    async def _progress(self, holds: list[Hold]) -> None:
        progress = JobProgress(share=0.5, eta_s=1.25)
        await self._scripts.progress([(hold, progress) for hold in holds])

    async def _renew(self, holds: list[Hold]) -> None:
        await self._scripts.renew("worker", holds)

    async def _listening(self) -> float:
        """Wait for a bell that does not ring, over and over."""

        async def listen() -> None:
            await command(self._client, "BLPOP", self._keys.bell, 0.01)

        return await self._cost([listen] * 300)

    async def _workers(self) -> dict[str, float]:
        names = iter(range(10**6))
        say = [lambda: self._say(next(names))]
        costs = {"heartbeat": await self._cost(say * NUM_CALLS)}
        many = await self._cost([self._reader.workers] * 20)
        self._server.flushall()
        await self._say(0)
        one = await self._cost([self._reader.workers] * NUM_CALLS)
        self._server.flushall()
        costs["workers_each"] = (many - one) / (NUM_CALLS - 1)
        return {**costs, "workers": one}

    async def _say(self, number: int) -> None:
        counters = EngineCounters(prefix_hits=100, stage_s={"trunk": 1.0, "head": 1.0})
        await self._reader.say(
            WorkerStatus(
                name=f"worker-{number:05}-4711-abcdef",
                phase="ready",
                num_slots=64,
                free_slots=3,
                step_s=0.0101,
                steps_left=9000,
                precision="bfloat16",
                is_batch_invariant=True,
                counters=counters,
            )
        )

    async def _of_results(self, num_bytes: int) -> dict[str, float]:
        """Measure what carries a result."""
        count = NUM_CALLS // 4
        await self._admit(count)
        holds = await self._claim(count)
        content = result(num_bytes)
        costs = {
            "stage": await self._cost(
                [partial(self._scripts.stage, hold, content) for hold in holds]
            ),
            "complete": await self._cost(
                [partial(self._scripts.complete, hold) for hold in holds]
            ),
            "read": await self._cost(
                [partial(self._reader.view, i, ()) for i, _ in holds]
            ),
            "forget": await self._cost([partial(self._scripts.forget, i) for i, _ in holds]),
        }  # fmt: skip
        self._server.flushall()
        return costs

    async def _bytes(self) -> dict[str, int]:
        """Measure what a waiting job, and one whose result is kept, take of the server's memory."""
        sizes, count = {}, 100
        await self._admit(count)
        sizes["waiting job"] = self._stored() // count
        for name, num_bytes in RESULT_BYTES.items():
            self._server.flushall()
            await self._admit(count)
            for hold in await self._claim(count):
                await self._scripts.stage(hold, result(num_bytes))
                await self._scripts.complete(hold)
            sizes[f"ended job, result of {num_bytes // 1000} kB ({name})"] = self._stored() // count
        self._server.flushall()
        return sizes

    def _stored(self) -> int:
        """Return the bytes of all keys with what the server needs around them."""
        keys: Any = self._server.keys("*")
        usages: Any = [self._server.memory_usage(key, samples=0) for key in keys]
        return sum(usages)
