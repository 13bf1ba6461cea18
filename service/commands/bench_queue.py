"""`bar bench queue`: what the queue costs without a model: jobs a second, and how soon it wakes.

Every verb goes the way it goes in a service, through a real server: an API's end admits, a worker's
end claims and completes. They run in phases, one verb at a time, so that each has a price of its
own. Client and server share one core, where the platform can see to that: jobs a second are what
one core does for both, and a service of several processes is faster. Where other processes want
that core too, jobs for each second that this one computed tell more. Everything happens in a queue
of its own, which is removed at the end.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from model.config import PRESETS, ImageRequest
from service.commands.bench_wake import measure_wake, remove_queue
from service.commands.flags import add_settings_flags, positive_int
from service.commands.own_redis import own_redis
from service.errors import QueueFull
from service.jobs import Job, JobResult, JobTimings, new_job_id
from service.queue_policy import QueuePolicy
from service.redis_client import connect
from service.redis_queue import RedisJobQueue
from service.redis_work import RedisWorkQueue
from service.settings import Settings

ROUND = 1000  # jobs that wait at the same time
AT_ONCE = 16  # calls under way at the same time; also the slots of the worker
TIMED = ("admit", "claim", "complete")  # what jobs_per_s is about
POLICY = QueuePolicy(max_queued_cost=10**9)
FULL = QueuePolicy(max_queued_cost=1)
NO_TIMINGS = JobTimings(queue_s=0.0, generation_s=0.0, decode_s=0.0, encode_s=0.0)


def main(argv: Sequence[str]) -> int:
    """Measure the queue and print a report.

    Raises: StartupError if there is no server, QueueUnavailable if it does not answer.
    """
    options = _parser().parse_args(argv)
    settings = Settings.load({"redis_url": options.redis_url})
    result = JobResult(images=(bytes(options.result_bytes),), timings=NO_TIMINGS)
    with _one_core() as num_cores, _server(settings) as url:
        report = {"cores": num_cores, **asyncio.run(measure_cost(url, options.jobs, result))}
    with _server(settings) as url:  # the API that is woken is a process beside this one
        report |= asyncio.run(measure_wake(url, options.wakes, result))
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    for name, value in report.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        sys.stdout.write(f"{name:24} {shown}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar bench queue",
        description="Measure the queue on a Redis server: the one that --redis-url names, or one "
        "that is started for this and removed.",
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=10000,
        metavar="N",
        help="that go through it (default: 10000)",
    )
    parser.add_argument(
        "--wakes", type=positive_int, default=500, metavar="N",
        help="clients that wait for a result, one after the other (default: 500)",
    )  # fmt: skip
    parser.add_argument(
        "--result-bytes", type=positive_int, default=5000, metavar="N",
        help="size of each job's result (default: 5000, an image of the digits)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    add_settings_flags(parser, ["redis_url"], redis_url="Redis server; left out, one is started")
    return parser


@contextmanager
def _server(settings: Settings) -> Iterator[str]:
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    with own_redis() as url:
        yield url


@contextmanager
def _one_core() -> Iterator[int]:
    """Keep this process, and those that it starts, on one core; give the number that they have."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield 1
    finally:
        os.sched_setaffinity(0, cores)


@dataclass
class Price:
    """What a verb took so far, over all jobs."""

    wall_s: float = 0.0
    core_s: float = 0.0  # of this process and the server, whatever else the machine has to do
    lua_s: float = 0.0  # in scripts, by the clock


class Bill:
    """The prices of the verbs, in the order in which they came."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.prices: dict[str, Price] = {}

    @asynccontextmanager
    async def on(self, verb: str) -> AsyncIterator[None]:
        """Put what happens meanwhile on the bill of `verb`."""
        price = self.prices.setdefault(verb, Price())
        server_s, lua_s = await self._server_s()
        wall_s, client_s = time.perf_counter(), time.process_time()
        yield
        price.wall_s += time.perf_counter() - wall_s
        price.core_s += time.process_time() - client_s - server_s
        server_s, after_s = await self._server_s()
        price.core_s += server_s
        price.lua_s += after_s - lua_s

    async def _server_s(self) -> tuple[float, float]:
        """Return the seconds that the server has computed, and those of them in scripts."""
        info = await self._client.info("all")
        lua_us = (info.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("eval", "evalsha"))
        return float(info["used_cpu_user"] + info["used_cpu_sys"]), sum(lua_us) / 1e6

    def report(self, num_jobs: int) -> dict[str, Any]:
        """Return jobs a second, and what each verb takes for one job."""
        prices = [self.prices[verb] for verb in TIMED]
        wall_s = sum(price.wall_s for price in prices)
        report: dict[str, Any] = {
            "jobs_per_s": num_jobs / wall_s,
            "jobs_per_core_s": num_jobs / sum(price.core_s for price in prices),
            "lua_share": sum(price.lua_s for price in prices) / wall_s,
        }
        for verb, price in self.prices.items():
            report[f"{verb}_us"] = 1e6 * price.wall_s / num_jobs
            report[f"{verb}_lua_us"] = 1e6 * price.lua_s / num_jobs
        return report


async def measure_cost(url: str, num_jobs: int, result: JobResult) -> dict[str, Any]:
    """Take jobs through the queue on the server at `url`; report what each verb costs.

    Raises: QueueUnavailable if the server does not answer.
    """
    name = f"bench-{secrets.token_hex(4)}"
    api = RedisJobQueue(url, name, POLICY, name="bench-api")
    full = RedisJobQueue(url, name, FULL, name="bench-api")
    work = RedisWorkQueue(url, name, POLICY, name="bench-worker")
    client = connect(url)
    bill = Bill(client)
    try:
        await _take_through(api, work, full, bill, 1, result)  # connects, and sends the scripts
        bill.prices.clear()
        for start in range(0, num_jobs, ROUND):
            count = min(ROUND, num_jobs - start)
            await _take_through(api, work, full, bill, count, result)
        server = await client.info("server")
        return {"redis_version": server["redis_version"], "jobs": num_jobs, **bill.report(num_jobs)}
    finally:
        for end in (api, full, work):
            await end.disconnect()
        await client.aclose()
        await remove_queue(url, name)


async def _take_through(
    api: RedisJobQueue, work: RedisWorkQueue, full: RedisJobQueue, bill: Bill, count: int,
    result: JobResult,
) -> None:  # fmt: skip
    """Take `count` jobs through every verb, and refuse as many."""
    jobs = [_job() for _ in range(count)]
    async with bill.on("admit"):
        await _at_once(api.admit, jobs)
    async with bill.on("refuse"):
        await _at_once(lambda job: _refused(full, job), [_job() for _ in range(count)])
    num_done = 0
    while num_done < count:
        async with bill.on("claim"):
            claims = await work.claim(AT_ONCE)
        async with bill.on("complete"):
            await _at_once(lambda claim: work.complete(claim, result), claims)
        num_done += len(claims)
    async with bill.on("answer"):
        await _at_once(lambda job: _answer(api, job), jobs)


async def _at_once(call: Callable[[Any], Awaitable[object]], things: Iterable[Any]) -> None:
    """Call with each thing, several at the same time."""
    left = iter(things)

    async def carry_on() -> None:
        for thing in left:
            await call(thing)

    await asyncio.gather(*(carry_on() for _ in range(AT_ONCE)))


async def _refused(full: RedisJobQueue, job: Job) -> None:
    with suppress(QueueFull):
        await full.admit(job)


async def _answer(api: RedisJobQueue, job: Job) -> None:
    await api.wait(job.id)
    await api.forget(job.id)


def _job() -> Job:
    image = ImageRequest(class_id=0, seed=0, sampling=PRESETS["digits"].sampling)
    return Job(id=new_job_id(), images=(image,), num_steps=64, output_format="png", timeout_s=600.0)
