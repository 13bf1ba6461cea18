"""Facts of what an API knows of the models whose files only its workers have."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from service.errors import QueueUnavailable
from service.jobs import WorkerStatus
from service.memory_queue import MemoryJobQueue
from service.queue_policy import QueuePolicy
from service.served_models import ServedModel
from service.server import bootstrap_api
from tests.service.fakes import FakeEngine, fake_info
from tests.service.harness import URL
from tests.service.redis_harness import settings_for, working
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

HERE = replace(fake_info(), revision="here")
ELSEWHERE = replace(fake_info(), revision="")


def served(info: object = ELSEWHERE) -> tuple[ServedModel, MemoryJobQueue]:
    """Serve a model from a queue without workers."""
    assert isinstance(info, type(ELSEWHERE))
    queue = MemoryJobQueue(QueuePolicy(max_queued_cost=1))
    return ServedModel(info, queue), queue


async def test_workers_tell_a_revision_that_is_not_known() -> None:
    """The one that takes jobs counts; when another follows it, that one."""
    model, queue = served()
    assert "" == (await model.described()).revision
    await queue.report(WorkerStatus(name="a", phase="loading", revision="early"))
    assert "" == (await model.described()).revision
    await queue.report(WorkerStatus(name="a", phase="ready", revision="first"))
    assert "first" == (await model.described()).revision
    await queue.report(WorkerStatus(name="a", phase="ready", revision="second"))
    await model.ready_worker()
    assert "second" == (await model.described()).revision
    await queue.report(WorkerStatus(name="a", phase="ready"))  # of a version that does not say
    await model.ready_worker()
    assert "second" == (await model.described()).revision


async def test_files_that_are_here_say_it_themselves() -> None:
    """A worker of another revision does not change what this process serves."""
    model, queue = served(HERE)
    await queue.report(WorkerStatus(name="a", phase="ready", revision="other"))
    await model.ready_worker()
    assert "here" == (await model.described()).revision


async def test_a_queue_that_is_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is told; the rest comes when it is there."""
    model, queue = served()

    async def away() -> tuple[WorkerStatus, ...]:
        raise QueueUnavailable("away")

    monkeypatch.setattr(queue, "workers", away)
    assert "" == (await model.described()).revision


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[httpx.AsyncClient]:
    """Talk to an API that was started before its model was on this machine; its worker has it."""
    redis_server.flush()
    settings = settings_for(redis_server.url)
    service = bootstrap_api(settings, [ELSEWHERE])
    transport = httpx.ASGITransport(service.api.app, raise_app_exceptions=False)
    async with (
        working(FakeEngine(), settings),
        service.queue.running(),
        httpx.AsyncClient(transport=transport, base_url="http://bar") as client,
    ):
        yield client
    await service.api.close()


async def test_every_answer_has_the_revision_that_made_it(client: httpx.AsyncClient) -> None:
    """Without a restart of the API: its card, its version, images, and what they are made again
    from."""
    revision = fake_info().revision
    while "" == (await client.get("/version")).json()["model_revision"]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # until the worker has told
    assert revision == (await client.get("/version")).json()["model_revision"]
    assert revision == (await client.get("/v1/models")).json()["data"][0]["revision"]
    body = {"class_id": 1, "seed": 2}
    assert revision == (await client.post(URL, json=body)).json()["model_revision"]
    png = await client.post(URL, json=body, headers={"accept": "image/png"})
    assert revision == png.headers["x-model-revision"]
    later = (await client.post(URL, json=body, headers={"prefer": "respond-async"})).json()
    known = await client.get(f"{URL}/{later['id']}", params={"wait": 20})
    assert revision == known.json()["model_revision"]
