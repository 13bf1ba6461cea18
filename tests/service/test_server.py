"""Facts of the process, over real sockets: disconnects, signals, a loop that is never blocked."""

import asyncio
import json
import logging
import signal
import socket
from contextlib import suppress

import httpx
import pytest

from service.errors import EngineLost, StartupError
from service.jobs import JobState
from service.server import bind, bootstrap_api, serve
from service.settings import Settings
from tests.service.fakes import FakeEngine, fake_info
from tests.service.harness import URL, Harness, error_of, listening
from tests.service.log_lines import said
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def open_request(h: Harness, **body: object) -> asyncio.StreamWriter:
    """Send a request on a connection of its own and leave the answer unread."""
    url = h.client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    content = json.dumps(body)
    writer.write(
        f"POST {URL} HTTP/1.1\r\nHost: bar\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
    )
    await writer.drain()
    return writer


async def refused(url: str) -> None:
    """Wait until new connections are refused."""
    with pytest.raises(httpx.ConnectError):  # noqa: PT012 - sooner or later
        while True:
            # One that was taken and is closed unread is not refused yet.
            with suppress(httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                    await client.get("/livez")


async def test_a_probe_is_answered_while_a_step_runs() -> None:
    """The event loop does not wait for the engine: /livez answers in the middle of a step."""
    async with listening(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        request = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.workers[0].free_slots == 0 or s.jobs_running == 1)
        for _ in range(3):
            assert 200 == (await h.client.get("/livez")).status_code
        assert [] == h.engine.batch_sizes
        assert not request.done()
        h.engine.gate.set()
        assert 200 == (await request).status_code


async def test_a_client_that_disconnects_frees_its_slots() -> None:
    """Closing the connection cancels the running job; the slots go to those who still wait."""
    async with listening(FakeEngine(num_slots=2)) as h:
        h.engine.num_steps = 10**9
        writers = [await open_request(h, class_id=1) for _ in range(2)]
        await h.until(lambda s: s.jobs_running == 2)
        waiting = asyncio.create_task(h.generate(class_id=2))
        await h.until(lambda s: s.jobs_waiting == 1)
        h.engine.num_steps = len(h.engine.batch_sizes) + 10**9
        for writer in writers:
            writer.transport.abort()
        await h.until(lambda s: s.num_ended[JobState.CANCELLED] == 2)
        h.engine.num_steps = 3
        assert 200 == (await waiting).status_code
        text = (await h.client.get("/metrics")).text
        assert (
            'bar_cancellations_total{cause="disconnect",model_name="digits",phase="running"} 2.0'
            in text
        )
        assert 'handler="/v1/generations",method="POST",status="499"} 2.0' in text


async def test_a_client_that_leaves_the_queue_is_gone() -> None:
    """A waiting job whose client has left never takes a slot."""
    async with listening(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        writer = await open_request(h, class_id=2)
        await h.until(lambda s: s.jobs_waiting == 1)
        writer.close()
        stats = await h.until(lambda s: s.jobs_waiting == 0)
        assert (1, 1) == (stats.num_ended[JobState.CANCELLED], stats.jobs_running)
        h.engine.gate.set()
        assert 200 == (await first).status_code


async def test_a_large_body_is_refused_over_a_real_connection() -> None:
    """413 arrives although the client has more to send."""
    async with listening(max_body_bytes=1024) as h:
        reply = await h.client.post(
            URL, content=b" " * 50_000, headers={"content-type": "application/json"}
        )
        assert (413, "body_too_large") == (reply.status_code, error_of(reply)["code"])
        assert 200 == (await h.client.get("/livez")).status_code


async def test_sigterm_finishes_what_was_accepted() -> None:
    """After SIGTERM running and waiting jobs are answered, new connections are refused."""
    async with listening(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        accepted = [asyncio.create_task(h.generate(class_id=n)) for n in range(3)]
        await h.until(lambda s: s.num_accepted == 3)
        signal.raise_signal(signal.SIGTERM)
        await refused(str(h.client.base_url))
        h.engine.gate.set()
        assert [200] * 3 == [reply.status_code for reply in await asyncio.gather(*accepted)]


async def test_what_outlasts_the_grace_time_is_503() -> None:
    """Nobody waits for ever: after the grace time the rest is told to go elsewhere."""
    async with listening(FakeEngine(num_slots=1), shutdown_grace_s=0.2) as h:
        h.engine.num_steps = 10**9
        endless = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        signal.raise_signal(signal.SIGTERM)
        reply = await endless
        assert (503, "draining") == (reply.status_code, error_of(reply)["code"])
        assert "retry-after" in reply.headers


async def test_a_second_signal_does_not_wait() -> None:
    """Whoever presses Ctrl-C twice means it."""
    async with listening(FakeEngine(num_slots=1), shutdown_grace_s=600) as h:
        h.engine.num_steps = 10**9
        endless = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert 503 == (await endless).status_code


async def test_a_model_that_cannot_be_loaded_ends_the_process() -> None:
    """What `load_engine` raises comes out of `serve`."""

    class Broken(FakeEngine):
        def admit(self, request: object) -> int:
            raise StartupError("no such weights")

    with pytest.raises(StartupError, match="no such weights"):
        async with listening(Broken()):
            pass


async def test_an_engine_that_cannot_be_cleared_ends_the_process() -> None:
    """When even freeing slots fails, waiting clients are told and the worker's error comes out."""

    class Stuck(FakeEngine):
        def cancel(self, slot: int) -> None:
            raise RuntimeError("stuck")

    def explode() -> None:
        raise RuntimeError("broken")

    with pytest.raises(EngineLost, match="stuck"):  # noqa: PT012 - raised as the block is left
        async with listening(Stuck()) as h:
            h.engine.fault = explode
            assert 500 == (await h.generate(class_id=1)).status_code


@pytest.mark.parametrize("where", ["fault", "decode_fault", "arrival_fault"])
async def test_a_broken_device_ends_the_process(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a CUDA error every client is told to come again, one line is logged, and it ends."""

    def explode() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    with pytest.raises(EngineLost, match="illegal memory access"):  # noqa: PT012
        async with listening(FakeEngine(num_slots=1)) as h:
            h.engine.gate.clear()
            tasks = [asyncio.create_task(h.generate(class_id=n)) for n in range(3)]
            await h.until(lambda s: s.num_accepted == 3)
            setattr(h.engine, where, explode)
            h.engine.gate.set()
            replies = [await task for task in tasks]
            assert [503] * 3 == [reply.status_code for reply in replies]
            codes = sorted(error_of(reply)["code"] for reply in replies)
            assert "worker_lost" == codes[-1]
            assert all("retry-after" in reply.headers for reply in replies)
    (record,) = said(caplog, "bar.worker", logging.ERROR)
    assert "illegal memory access" in record.message
    assert "\n" not in record.message


def test_answers_are_not_held_back() -> None:
    """Accepted connections are marked as TCP, for which asyncio turns Nagle's algorithm off."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert socket.IPPROTO_TCP == connection.proto


def test_a_port_that_is_taken_is_a_startup_error() -> None:
    """The message names address and port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1 port {port}.*--port"):
            bind("127.0.0.1", port)


def test_an_address_that_is_not_here_is_a_startup_error() -> None:
    """So is an address that this machine does not have."""
    with pytest.raises(StartupError, match=r"203\.0\.113\.1 port 0: "):
        bind("203.0.113.1", 0)


async def test_an_api_says_that_it_listens_when_it_does(redis_server: RedisServer) -> None:
    """Who connects as soon as the process tells is not refused."""
    settings = Settings.load({"redis_url": redis_server.url, "port": 0}, environ={})
    with bind("127.0.0.1", 0) as listener:

        def connect() -> None:
            socket.create_connection(listener.getsockname()).close()
            signal.raise_signal(signal.SIGTERM)

        await serve(bootstrap_api(settings, [fake_info()]), listener, connect)
