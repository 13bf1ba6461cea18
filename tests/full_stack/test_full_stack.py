"""Everything is replaced under load, and no client notices."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.full_stack.stack import Stack, bench, generate, needed

CLASS_ID, SEED, NUM_IMAGES = 4, 1000, 6
PNG = {"accept": "image/png"}

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


@asynccontextmanager
async def whole_stack(**options: Any) -> AsyncIterator[Stack]:
    """Run an installation in a folder with a short name: a socket's path is limited."""
    needed("haproxy", "haproxy")
    needed("prometheus", "prometheus")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        stack = Stack(Path(folder), cleanup, **options)
        await stack.start()
        yield stack


class Clients:
    """Clients that ask for known images, again and again, and compare each byte."""

    def __init__(self, url: str, images: dict[int, bytes]) -> None:
        self._url, self._images = url, images
        self.num_answered = self.num_put_off = 0

    async def ask_until(self, end: asyncio.Event, *, comes_again: bool) -> None:
        """Ask until `end`; who `comes_again` is put off by 503, as its Retry-After says."""
        rng = random.Random(7)
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            while not end.is_set():
                seed = rng.choice(list(self._images))
                body = {"class_id": CLASS_ID, "seed": seed, "timeout_s": 100}
                answer = await client.post("/v1/generations", json=body, headers=PNG)
                if comes_again and answer.status_code == 503:
                    self.num_put_off += 1
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                    continue
                assert answer.status_code == 200, answer.text
                assert self._images[seed] == answer.content, f"seed {seed} gave another image"
                self.num_answered += 1


async def test_everything_is_replaced_under_load(tmp_path: Path) -> None:
    """Three workers and two APIs behind a proxy are replaced one by one: nobody gets an error,
    every known image is byte for byte that of `bar generate`, and each request ran once."""
    images = await generate(CLASS_ID, SEED, NUM_IMAGES, tmp_path)
    async with whole_stack() as stack:
        end, reports = asyncio.Event(), []

        async def load() -> None:
            while not end.is_set():
                reports.append(await bench(stack.url, "--requests", "60", "--concurrency", "6"))

        clients = Clients(stack.url, images)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load())
            tasks.create_task(clients.ask_until(end, comes_again=False))
            statuses = {name: await stack.replace(name) for name in stack.services}
            end.set()
        assert {0} == set(statuses.values()), statuses
        assert {} == {reason: n for report in reports for reason, n in report["failures"].items()}
        answered = clients.num_answered + sum(report["succeeded"] for report in reports)
        assert clients.num_answered > len(images)
        await asyncio.sleep(3)  # for Prometheus to look again
        assert 5.0 == sum((await stack.query('up{job=~"bar-.*"}')).values())
        for metric in ("bar_jobs_accepted_total", 'bar_jobs_ended_total{state="succeeded"}'):
            counted = await stack.query(f"max by (model_name) ({metric})")
            assert {'{"model_name": "digits"}': float(answered)} == counted, metric
        assert {} == await stack.query('ALERTS{severity="critical",alertstate="firing"}')
        assert {'{"model_name": "digits"}': 3.0} == await stack.query(
            'max by (model_name) (bar_workers{phase="ready"})'
        )


async def test_a_restart_of_redis_only_puts_clients_off(tmp_path: Path) -> None:
    """Redis is killed and comes back with its file: clients that come again when they are told get
    their images, byte for byte, and nobody else had to be restarted."""
    images = await generate(CLASS_ID, SEED, NUM_IMAGES, tmp_path)
    async with whole_stack(num_workers=1, num_apis=2) as stack:
        end, clients = asyncio.Event(), Clients(stack.url, images)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(clients.ask_until(end, comes_again=True))
            for _ in range(2):
                await asyncio.sleep(2)
                stack.redis.kill()
                await asyncio.sleep(1.5)
                stack.redis.start()
            before = clients.num_answered
            while clients.num_answered < before + 20:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.1)
            end.set()
        assert all(m.process and m.process.poll() is None for m in stack.members.values())


async def test_a_request_without_a_worker_is_what_wakes_one() -> None:
    """With no worker requests are refused and told when to come again; the demand that autoscalers
    read rises from nothing, and so they start the first."""
    async with whole_stack(num_workers=0, num_apis=1) as stack:
        await until_demand(stack, 0.0)
        async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
            answer = await client.post("/v1/generations", json={"class_id": CLASS_ID})
        assert (503, "not_ready") == (answer.status_code, answer.json()["error"]["code"])
        assert float(answer.headers["retry-after"]) > 0
        await until_demand(stack, 0.5)


async def until_demand(stack: Stack, least: float) -> None:
    """Wait until the recorded demand is known, and at least so much."""
    while True:
        demand = list((await stack.query("bar:images_wanted")).values())
        if demand and demand[0] >= least:
            return
        await asyncio.sleep(0.2)
