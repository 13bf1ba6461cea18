"""Facts of the ports beside the main business: a worker's probes, metrics apart from clients."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from service.errors import QueueUnavailable
from service.server import bind, serve
from service.side_port import LIVE, READY, STARTED, open_side_port, worker_app
from service.worker_health import WorkerHealth
from tests.service.fakes import FakeClock, FakeEngine
from tests.service.harness import error_of, make_service, running
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def scrape() -> bytes:
    """Stand for a registry."""
    return b"bar_steps 1\n"


async def reach() -> None:
    """Stand for a queue that answers."""


@asynccontextmanager
async def client_of(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Serve `app` on a free port of the loopback, and yield a client of it."""
    with bind("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            open_side_port(app, listener),
            httpx.AsyncClient(base_url=address, timeout=60) as client,
        ):
            yield client


async def statuses(client: httpx.AsyncClient) -> dict[str, int]:
    """Ask every probe."""
    paths = (*LIVE, *READY, *STARTED)
    return {path: (await client.get(path)).status_code for path in paths}


def expected(live: int, ready: int, started: int) -> dict[str, int]:
    """Say what every probe, its aliases included, should answer."""
    paths = [
        *((p, live) for p in LIVE),
        *((p, ready) for p in READY),
        *((p, started) for p in STARTED),
    ]
    return dict(paths)


async def test_probes_tell_of_a_worker_from_its_start_to_its_end() -> None:
    """Loading, ready, unfit, stalled, stopping: each probe answers its own question."""
    clock = FakeClock()
    health = WorkerHealth(30.0, clock=clock)
    async with client_of(worker_app(health, scrape, reach)) as client:
        assert expected(200, 503, 503) == await statuses(client)
        health.enter("warming_up")
        assert expected(200, 503, 503) == await statuses(client)
        health.enter("ready")
        assert expected(200, 200, 200) == await statuses(client)
        health.enter("unfit")
        assert expected(200, 503, 200) == await statuses(client)
        health.enter("ready")
        health.note_work(is_in_flight=True)
        clock.now += 31
        assert expected(503, 503, 200) == await statuses(client)
        health.note_work(is_in_flight=True)
        health.is_stopping = True
        assert expected(200, 503, 200) == await statuses(client)


async def test_a_probe_says_why_in_the_envelope() -> None:
    """Whoever looks into an event of Kubernetes reads what is wrong."""
    async with client_of(worker_app(WorkerHealth(30.0), scrape, reach)) as client:
        reply = await client.get("/readyz")
        assert "the worker is loading" == error_of(reply)["message"]
        assert "not_started" == error_of(await client.get("/startupz"))["code"]


async def test_liveness_never_depends_on_the_queue() -> None:
    """While its server is away a worker is not ready, and starting it again would help nobody."""

    async def away() -> None:
        raise QueueUnavailable("the queue's server does not answer; try again later")

    health = WorkerHealth(30.0)
    health.enter("ready")
    async with client_of(worker_app(health, scrape, away)) as client:
        assert expected(200, 503, 200) == await statuses(client)
        assert "queue_unavailable" == error_of(await client.get("/readyz"))["code"]


async def test_there_is_nothing_else() -> None:
    """Metrics are there; other routes and methods are refused in the envelope."""
    async with client_of(worker_app(WorkerHealth(30.0), scrape, reach)) as client:
        reply = await client.get("/metrics")
        assert b"bar_steps 1\n" == reply.content
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        for path in ("/", "/v1/generations", "/docs"):
            assert 404 == (await client.get(path)).status_code
            assert "not_found" == error_of(await client.get(path))["code"]
        assert 405 == (await client.post("/livez")).status_code


async def test_the_probes_of_a_server_are_those_of_its_worker() -> None:
    """Where one process does everything, it is as well as its engine."""
    engine = FakeEngine()
    async with running(engine, is_ready=False, stall_s=1.0) as h:
        assert h.service.worker
        health = h.service.worker.health
        assert {503} == {
            (await h.client.get(path)).status_code for path in ("/readyz", "/startupz")
        }
        assert "loading" in error_of(await h.client.get("/startupz"))["message"]
        while health.why_not_ready():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        paths = ("/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready")
        assert {200} == {(await h.client.get(path)).status_code for path in paths}
        engine.gate.clear()
        task = asyncio.create_task(h.generate(class_id=1))
        while (reply := await h.client.get("/livez")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert "not_live" == error_of(reply)["code"]
        assert 503 == (await h.client.get("/readyz")).status_code
        engine.gate.set()
        assert 200 == (await task).status_code
        assert 200 == (await h.client.get("/livez")).status_code


async def test_metrics_may_have_a_port_of_their_own() -> None:
    """Then they are there alone, and clients of the API do not see them."""
    service = make_service(FakeEngine(), metrics_port=0)
    ready = asyncio.Event()
    with bind("127.0.0.1", 0) as listener, bind("127.0.0.1", 0) as beside:
        serving = asyncio.create_task(serve(service, listener, ready.set, beside))
        await ready.wait()
        api, apart = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in (listener, beside))
        async with httpx.AsyncClient(timeout=60) as client:
            assert 404 == (await client.get(f"{api}/metrics")).status_code
            assert 200 == (await client.get(f"{api}/livez")).status_code
            text = (await client.get(f"{apart}/metrics")).text
            assert 404 == (await client.get(f"{apart}/v1/models")).status_code
        signal.raise_signal(signal.SIGTERM)
        await serving
    assert 'bar_workers{model_name="digits",phase="ready"} 1.0' in text


async def test_a_worker_process_answers_probes_and_metrics(
    redis_server: RedisServer, tiny_model_dir: Path
) -> None:
    """It says where, before its weights are loaded, and ends with status 0."""
    flags = ["--redis-url", redis_server.url, "--model", str(tiny_model_dir), "--worker-port", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "worker", *flags, "--threads", "1",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        said = re.search(r"http://\S+", (await process.stdout.readline()).decode())
        assert said
        async with httpx.AsyncClient(base_url=said[0], timeout=60) as client:
            await until(client, "/livez")
            await until(client, "/readyz")
            assert expected(200, 200, 200) == await statuses(client)
            text = (await client.get("/metrics")).text
        assert 'bar_worker_ready{model_name="tiny"} 1.0' in text
        assert 'bar_canary_ok{model_name="tiny"} 1.0' in text
        assert 'precision="float32"' in text
    finally:
        process.terminate()
        status = await process.wait()
    assert 0 == status


async def until(client: httpx.AsyncClient, path: str) -> None:
    """Return when `path` is answered with 200."""
    while True:
        try:
            if (await client.get(path)).status_code == 200:
                return
        except httpx.ConnectError:
            pass
        await asyncio.sleep(0.05)
