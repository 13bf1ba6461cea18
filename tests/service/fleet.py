"""Processes around one server for tests: workers on a fake engine, APIs, and a client for them."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import numpy as np
from PIL import Image

from model.config import ImageRequest
from model.zoo import resolve
from tests.service.fakes import fake_pixels
from tests.service.harness import URL
from tests.service.redis_server import RedisServer

KEYS = "{bar:digits}:"
PNG = {"accept": "image/png"}
PATIENCE_S = 60.0  # far more than anything takes, on a machine that has other things to do

Process = subprocess.Popen[str]


@dataclass
class Fleet:
    """Processes around one server, ended when the test is.

    They reach the server at `url`, which a test may lead through a proxy. Leases of `lease_s` are
    lost to those who hang for two thirds of it: they are short only where a test waits for that.
    """

    server: RedisServer
    stack: ExitStack
    lease_s: float = 10.0
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.server.url

    def _start(self, *command: str) -> Process:
        return self.stack.enter_context(_running([sys.executable, "-m", *command]))

    def _flags(self) -> list[str]:
        return ["--redis-url", self.url, "--log-level", "error", "--lease-s", f"{self.lease_s}"]

    def start_worker(self, step_s: float = 0.0, *flags: str) -> Process:
        """Start a worker on a fake engine of four slots."""
        return self._start(
            "tests.service.worker_under_test", "--fake", str(step_s), "--", *self._flags(), *flags
        )

    def worker(self, step_s: float = 0.0, *flags: str) -> Process:
        """Start a worker; return when it is ready."""
        process = self.start_worker(step_s, *flags)
        assert process.stdout
        assert "ready" in process.stdout.readline()
        return process

    def api(self, *flags: str) -> tuple[Process, str]:
        """Start an API; return it and its address when it listens."""
        process = self._start("service", "serve", "--port", "0", *self._flags(), *flags)
        assert process.stdout
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        process.stdout.readline()
        return process, found[0]

    def counter(self, name: str) -> int:
        """Return one of the queue's counters: accepted, redelivered, ended:<state>, …"""
        value = self.server.client.hget(f"{KEYS}meta", name)
        assert value is None or isinstance(value, bytes)
        return int(value or 0)

    def ids(self, name: str) -> list[str]:
        """Return the ids of the jobs that one of the queue's sets holds: ready, lease, …"""
        found = cast("list[bytes]", self.server.client.zrange(KEYS + name, 0, -1))
        return [job_id.decode() for job_id in found]

    def size(self, name: str) -> int:
        """Return how many jobs that are."""
        return int(self.server.client.zcard(KEYS + name))

    async def running(self, count: int) -> None:
        """Wait until so many jobs run."""
        await until(lambda: self.size("lease") >= count)

    async def accepted(self, count: int) -> None:
        """Wait until so many jobs were accepted."""
        await until(lambda: self.counter("accepted") >= count)


@contextmanager
def _running(command: list[str]) -> Iterator[Process]:
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


async def until(holds: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until `holds` says so, and fail after `seconds`."""
    ends_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends_at, "it never came true"
        await asyncio.sleep(0.01)


async def end_of(process: Process) -> int:
    """Wait for a process to end; return its status."""
    return await asyncio.to_thread(process.wait, PATIENCE_S)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Talk to an API."""
    async with httpx.AsyncClient(base_url=url, timeout=2 * PATIENCE_S) as client:
        yield client


async def ask(
    client: httpx.AsyncClient, seed: int, *, api: str = "", **body: Any
) -> httpx.Response:
    """Ask for an image, from the client's API or the one at the address `api`."""
    content = {"class_id": 1, "seed": seed, **body}
    return await client.post(api + URL, json=content, headers=PNG)


async def ask_for_later(client: httpx.AsyncClient, seed: int) -> str:
    """Ask for an image that nobody waits for; return where it is to be found."""
    headers = {"prefer": "respond-async"}
    reply = await client.post(URL, json={"class_id": 1, "seed": seed}, headers=headers)
    assert reply.status_code == 202, reply.text
    return reply.headers["location"]


def asking(client: httpx.AsyncClient, seeds: range) -> list["asyncio.Task[httpx.Response]"]:
    """Ask for several images at once."""
    return [asyncio.create_task(ask(client, seed)) for seed in seeds]


def is_image(reply: httpx.Response, seed: int) -> bool:
    """Say whether a reply is the image of class 1 and `seed`."""
    assert reply.status_code == 200, reply.text
    with Image.open(io.BytesIO(reply.content)) as image:
        pixels = np.asarray(image)
    request = ImageRequest(class_id=1, seed=seed, sampling=resolve("digits").sampling)
    return bool((pixels == fake_pixels(request)).all())


async def are_images(tasks: list["asyncio.Task[httpx.Response]"], seeds: range) -> bool:
    """Say whether every request was answered with its own image."""
    replies = await asyncio.gather(*tasks)
    return all(is_image(reply, seed) for seed, reply in zip(seeds, replies, strict=True))
