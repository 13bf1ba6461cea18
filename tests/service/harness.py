"""A whole service in the test's own event loop, on a fake engine, with a client in front of it."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model.config import ImageRequest, SamplingConfig
from model.zoo import ModelInfo
from service.images import encode
from service.job_queue import JobQueue
from service.jobs import QueueStats
from service.provenance import Provenance
from service.server import Service, bind, bootstrap, serve
from service.settings import Settings
from service.tracing import Traces
from tests.service.fakes import FakeEngine, as_engine, fake_info, fake_pixels

URL = "/v1/generations"


@dataclass(frozen=True)
class Harness:
    """A running service and what a test looks at."""

    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient

    @property
    def queue(self) -> JobQueue:
        return self.service.queue

    async def generate(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post(URL, json=body, headers=headers)

    async def until(self, holds: Callable[[QueueStats], bool]) -> QueueStats:
        """Return the queue's stats as soon as they satisfy `holds`."""
        while not holds(stats := await self.queue.stats()):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        return stats


def make_service(
    engine: FakeEngine,
    info: ModelInfo | None = None,
    traces: Traces | None = None,
    **settings: Any,
) -> Service:
    """Wire a service of the fake model, or of what `info` makes of it, on `engine`."""
    values = {"model": "digits", "port": 0, **settings}
    info = info or fake_info()
    return bootstrap(Settings.load(values, environ={}), info, lambda: as_engine(engine), traces)


@asynccontextmanager
async def running(
    engine: FakeEngine | None = None, *, is_ready: bool = True, **settings: Any
) -> AsyncIterator[Harness]:
    """Run a service behind an in-process transport; yield it when it is ready, or before."""
    engine = engine or FakeEngine()
    service = make_service(engine, **settings)
    ready = asyncio.Event()
    assert service.worker
    worker = asyncio.create_task(service.worker.run(ready.set))
    transport = httpx.ASGITransport(service.api.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://bar") as client:
        if is_ready:
            await _first_of(ready.wait(), worker)
        engine.batch_sizes.clear()  # without the warm-up's
        try:
            yield Harness(service, engine, client)
        finally:
            engine.gate.set()
            worker.cancel()
            await asyncio.wait({worker})


@asynccontextmanager
async def listening(engine: FakeEngine | None = None, **settings: Any) -> AsyncIterator[Harness]:
    """Run a service on a real socket of the loopback; yield it when it is ready.

    It must have stopped when the block ends, or is stopped then.
    """
    engine = engine or FakeEngine()
    service = make_service(engine, **settings)
    ready = asyncio.Event()
    with bind("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(serve(service, listener, ready.set))
        try:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                await _first_of(ready.wait(), serving)
                engine.batch_sizes.clear()
                yield Harness(service, engine, client)
        finally:
            engine.gate.set()
            if not serving.done():
                signal.raise_signal(signal.SIGTERM)
            await serving


async def _first_of(ready: Coroutine[Any, Any, object], running: asyncio.Task[None]) -> None:
    """Wait for `ready`; if `running` ends before, raise what ended it."""
    waiting = asyncio.ensure_future(ready)
    await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        waiting.cancel()
        running.result()


def expected_png(class_id: int, seed: int, **sampling: Any) -> bytes:
    """Return the PNG that the fake model makes of a request."""
    info = fake_info()
    values = {**info.sampling.to_json(), **sampling}
    request = ImageRequest(class_id=class_id, seed=seed, sampling=SamplingConfig.from_json(values))
    return encode(fake_pixels(request), "png", Provenance.of(info, request).texts())


def save_tiny_model(directory: Path) -> None:
    """Write a model directory with random weights: five classes, 8×8 pixels, 4 steps."""
    import torch

    from model.checkpoint import save_model
    from model.class_labels import ClassLabels
    from tests.model import tiny

    config = tiny.tiny_config(patch_size=2)
    save_model(
        directory,
        tiny.tiny_generator(config, torch.float32),
        tiny.tiny_tokenizer(dtype=torch.float32),
        SamplingConfig(guidance_scale=3.0, temperature=1.5, unmask_schedule=(4, 4, 8)),
        ClassLabels.from_names(["ant", "bee", "cat", "dog", "eel"]),
    )


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """Return what stands in the envelope of an error answer, which must be one."""
    body = json.loads(reply.content)
    assert {"error"} == set(body)
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} == set(error)
    return error
