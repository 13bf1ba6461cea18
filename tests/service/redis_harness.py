"""The same harness over a real Redis server: an API, and a worker beside it, in one event loop."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from service.server import Service, bind, bootstrap_api, make_policy, serve
from service.settings import Settings
from service.worker_process import WorkerProcess
from service.worker_start import run_worker
from tests.service.fakes import FakeEngine, as_engine, fake_info
from tests.service.harness import Harness


def settings_for(url: str, **settings: Any) -> Settings:
    """Return settings of a process on the server at `url`."""
    return Settings.load({"model": "digits", "port": 0, "redis_url": url, **settings}, environ={})


@asynccontextmanager
async def working(engine: FakeEngine, settings: Settings) -> AsyncIterator[None]:
    """Run a worker; it is ready when the block begins."""
    ready = asyncio.Event()
    process = WorkerProcess.make(
        settings, fake_info(), make_policy(settings), lambda: as_engine(engine)
    )
    async with process.queue.running():
        work = asyncio.create_task(run_worker(process.parts, ready.set))
        await ready.wait()
        try:
            yield
        finally:
            engine.gate.set()
            work.cancel()
            await asyncio.wait({work})


@asynccontextmanager
async def running_on(
    url: str, engine: FakeEngine | None = None, **settings: Any
) -> AsyncIterator[Harness]:
    """Run a service of two processes' parts behind an in-process transport."""
    engine, loaded = engine or FakeEngine(), settings_for(url, **settings)
    service = bootstrap_api(loaded, [fake_info()])
    transport = httpx.ASGITransport(service.api.app, raise_app_exceptions=False)
    async with (
        working(engine, loaded),
        service.queue.running(),
        httpx.AsyncClient(transport=transport, base_url="http://bar") as client,
    ):
        yield await _when_ready(service, engine, client)
        engine.gate.set()
    await service.api.close()


@asynccontextmanager
async def listening_on(
    url: str, engine: FakeEngine | None = None, **settings: Any
) -> AsyncIterator[Harness]:
    """The same on a real socket of the loopback."""
    engine, loaded = engine or FakeEngine(), settings_for(url, **settings)
    service = bootstrap_api(loaded, [fake_info()])
    with bind("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with working(engine, loaded):
            serving = asyncio.create_task(serve(service, listener))
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                yield await _when_ready(service, engine, client)
            engine.gate.set()
            signal.raise_signal(signal.SIGTERM)
            await serving


async def _when_ready(service: Service, engine: FakeEngine, client: httpx.AsyncClient) -> Harness:
    """Return a harness once the API has heard of the worker."""
    while await service.models.default.ready_worker() is None:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    engine.batch_sizes.clear()
    return Harness(service, engine, client)
