"""Facts of separate processes: an API, workers and a server, and any of them may die."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.config import ImageRequest
from model.zoo import resolve
from tests.service.fakes import fake_pixels
from tests.service.harness import URL
from tests.service.redis_server import RedisServer
from tests.service.worker_under_test import POISON

pytestmark = pytest.mark.anyio

FLAGS = ["--lease-s", "1"]
PNG = {"accept": "image/png"}


@dataclass
class Fleet:
    """Processes around one server, ended when the test is."""

    server: RedisServer
    stack: ExitStack
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def _start(self, *command: str) -> "subprocess.Popen[str]":
        process = self.stack.enter_context(_running([sys.executable, "-m", *command]))
        self.processes.append(process)
        return process

    def worker(self, step_s: float = 0.0, *flags: str) -> "subprocess.Popen[str]":
        """Start a worker on a fake engine; return when it is ready."""
        process = self._start(
            "tests.service.worker_under_test", "--fake", str(step_s), "--",
            "--redis-url", self.server.url, "--log-level", "error", *FLAGS, *flags,
        )  # fmt: skip
        assert process.stdout
        assert "ready" in process.stdout.readline()
        return process

    def api(self, *flags: str) -> tuple["subprocess.Popen[str]", str]:
        """Start an API; return it and its address when it listens."""
        process = self._start(
            "service", "serve", "--redis-url", self.server.url, "--port", "0",
            "--log-level", "error", *FLAGS, *flags,
        )  # fmt: skip
        assert process.stdout
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        process.stdout.readline()
        return process, found[0]


@contextmanager
def _running(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """No processes but a server."""
    with ExitStack() as stack, RedisServer(tmp_path) as server:
        yield Fleet(server, stack)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Talk to an API."""
    async with httpx.AsyncClient(base_url=url, timeout=40) as client:
        yield client


async def ask(client: httpx.AsyncClient, seed: int, **body: Any) -> httpx.Response:
    """Ask for an image."""
    return await client.post(URL, json={"class_id": 1, "seed": seed, **body}, headers=PNG)


def is_image(reply: httpx.Response, seed: int) -> bool:
    """Say whether a reply is the image of class 1 and `seed`."""
    with Image.open(io.BytesIO(reply.content)) as image:
        pixels = np.asarray(image)
    request = ImageRequest(class_id=1, seed=seed, sampling=resolve("digits").sampling)
    return bool((pixels == fake_pixels(request)).all())


async def jobs_running(fleet: Fleet, count: int) -> None:
    """Wait until so many jobs run."""
    ends_at = time.monotonic() + 10
    while fleet.server.client.zcard("{bar:digits}:lease") < count:
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


async def test_a_killed_workers_jobs_run_elsewhere(fleet: Fleet) -> None:
    """Kill -9: every client gets its own image, within a lease and a second more."""
    first = fleet.worker(0.2)
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = [asyncio.create_task(ask(client, seed)) for seed in range(4)]
        await jobs_running(fleet, 1)
        first.kill()
        fleet.worker()
        replies = await asyncio.gather(*tasks)
    assert all(is_image(reply, seed) for seed, reply in zip(range(4), replies, strict=True))


async def test_a_stopped_worker_wakes_to_find_its_result_refused(fleet: Fleet) -> None:
    """SIGSTOP between computed and stored, past the lease: another's result stands."""
    sleeper = fleet.worker(0.01)
    _, url = fleet.api()
    async with client_of(url) as client:
        sleeper.send_signal(signal.SIGUSR1)
        task = asyncio.create_task(ask(client, 1))
        await jobs_running(fleet, 1)
        await asyncio.sleep(1.0)
        fleet.worker()
        reply = await task
        sleeper.send_signal(signal.SIGCONT)
        assert is_image(reply, 1)
        assert is_image(await ask(client, 2), 2)
    assert b"2" == fleet.server.client.hget("{bar:digits}:meta", "ended:succeeded")


async def test_sigterm_under_load_costs_nothing(fleet: Fleet) -> None:
    """Workers that are replaced one by one finish or hand back; no client sees an error, no job
    loses an attempt, and all end with status 0."""
    first = fleet.worker(0.01)
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = [asyncio.create_task(ask(client, seed)) for seed in range(12)]
        await jobs_running(fleet, 1)
        fleet.worker(0.01)
        first.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*tasks)
        assert 0 == await asyncio.to_thread(first.wait, 10)
    assert {200} == {reply.status_code for reply in replies}
    assert None is fleet.server.client.hget("{bar:digits}:meta", "redelivered")


async def test_a_worker_out_of_grace_hands_back(fleet: Fleet) -> None:
    """What is not done at the end of the grace time is somebody else's at once."""
    slow = fleet.worker(0.5, "--shutdown-grace-s", "0.3")
    _, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1))
        await jobs_running(fleet, 1)
        slow.send_signal(signal.SIGTERM)
        assert 0 == await asyncio.to_thread(slow.wait, 10)
        fleet.worker()
        assert is_image(await task, 1)
    assert None is fleet.server.client.hget("{bar:digits}:meta", "redelivered")


async def test_an_api_that_stops_answers_what_waits(fleet: Fleet) -> None:
    """SIGTERM on the API: whoever was accepted gets the image; status 0."""
    fleet.worker(0.02)
    api, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1))
        await jobs_running(fleet, 1)
        api.send_signal(signal.SIGTERM)
        assert is_image(await task, 1)
    assert 0 == await asyncio.to_thread(api.wait, 10)


async def test_an_api_that_is_killed_leaves_its_jobs_to_end(fleet: Fleet) -> None:
    """Nobody waits for them any more, and the queue is empty all the same."""
    fleet.worker(0.02)
    api, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1))
        await jobs_running(fleet, 1)
        api.kill()
        with pytest.raises(httpx.HTTPError):
            await task
    ends_at = time.monotonic() + 10
    while fleet.server.client.hget("{bar:digits}:meta", "ended:succeeded") != b"1":
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.02)


async def test_a_client_that_leaves_frees_its_worker(fleet: Fleet) -> None:
    """A closed connection ends its running job at the next step."""
    fleet.worker(0.05)
    _, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1, num_images=1))
        await jobs_running(fleet, 1)
        task.cancel()
        await asyncio.sleep(0.3)
    assert 0 == fleet.server.client.zcard("{bar:digits}:lease")
    assert b"1" == fleet.server.client.hget("{bar:digits}:meta", "ended:cancelled")


async def test_probes_know_the_server(fleet: Fleet) -> None:
    """While the server is away requests are 503 with Retry-After in two seconds, readiness fails,
    liveness stays; afterwards all is well."""
    fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        assert 200 == (await client.get("/readyz")).status_code
        fleet.server.kill()
        await asyncio.sleep(1.1)
        started = time.monotonic()
        reply = await ask(client, 1)
        assert (503, True) == (reply.status_code, "retry-after" in reply.headers)
        assert time.monotonic() - started < 5.0  # its own limit is 2; this machine may be busy
        assert 503 == (await client.get("/readyz")).status_code
        assert 200 == (await client.get("/livez")).status_code
        fleet.server.start()
        ends_at = time.monotonic() + 20
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.1)
        assert is_image(await ask(client, 1), 1)


async def test_a_server_that_loses_everything_costs_no_answer(fleet: Fleet) -> None:
    """FLUSHALL under load: every waiting client still gets its image."""
    fleet.worker(0.02)
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = [asyncio.create_task(ask(client, seed)) for seed in range(8)]
        await jobs_running(fleet, 1)
        fleet.server.flush()
        replies = await asyncio.gather(*tasks)
    assert all(is_image(reply, seed) for seed, reply in zip(range(8), replies, strict=True))


async def test_a_full_queue_is_429_at_once(fleet: Fleet) -> None:
    """Beyond the bound a request is refused with Retry-After, before anything else has ended."""
    fleet.worker(0.5)
    _, url = fleet.api("--max-queued-steps", "16", "--max-images", "1")
    async with client_of(url) as client:
        tasks = []
        for seed in range(4):
            tasks.append(asyncio.create_task(ask(client, seed)))
            await jobs_running(fleet, seed + 1)
        tasks.append(asyncio.create_task(ask(client, 5)))
        await asyncio.sleep(0.2)
        reply = await ask(client, 6)
        assert (429, True) == (reply.status_code, "retry-after" in reply.headers)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()


async def test_only_the_job_that_kills_ends_dead(fleet: Fleet) -> None:
    """Its batch-mates get their images, it gets 500, and it can be looked at."""
    _, url = fleet.api()

    async def keep_a_worker(stop: asyncio.Event) -> None:
        while not stop.is_set():
            worker = await asyncio.to_thread(fleet.worker, 0.01)
            while worker.poll() is None and not stop.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    stop = asyncio.Event()
    keeping = asyncio.create_task(keep_a_worker(stop))
    async with client_of(url) as client:
        while (await ask(client, 1)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        tasks = [asyncio.create_task(ask(client, seed)) for seed in (POISON, 2, 3)]
        poisoned, *others = await asyncio.gather(*tasks)
    stop.set()
    await keeping
    assert 500 == poisoned.status_code
    assert all(is_image(reply, seed) for seed, reply in zip((2, 3), others, strict=True))
    command = [sys.executable, "-m", "service", "queue", "dead", "--redis-url", fleet.server.url]
    listed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert '"crashes": 6' in listed.stdout


async def test_an_unknown_model_is_refused_with_those_that_are_served(fleet: Fleet) -> None:
    """Requests are routed by their model; one that nobody serves says who is there."""
    _, url = fleet.api("--model", "digits,bar-b")
    async with client_of(url) as client:
        reply = await ask(client, 1, model="bar-x")
        assert 404 == reply.status_code
        assert "digits, bar-b" in reply.text
        assert 503 == (await ask(client, 1, model="bar-b")).status_code
