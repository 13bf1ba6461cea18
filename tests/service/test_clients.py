"""Facts of clients that others have written: health checks, event streams, connections cut off."""

import asyncio
import base64
import socket
import struct
from typing import Any

import httpx
import httpx_sse
import pytest
import tritonclient.http

from service.jobs import JobState
from tests.service.fakes import NUM_STEPS, FakeEngine
from tests.service.harness import URL, Harness, expected_png, listening

pytestmark = pytest.mark.anyio

NUM_CUT = 100


def address_of(h: Harness) -> tuple[str, int]:
    """Return where a service listens."""
    url = h.client.base_url
    assert url.port
    return url.host, url.port


async def asked(h: Harness, question: str) -> bool:
    """Ask through the client of KServe's protocol, which blocks."""
    host, port = address_of(h)

    def ask() -> bool:
        client = tritonclient.http.InferenceServerClient(f"{host}:{port}")
        try:
            answer: bool = getattr(client, question)()
        finally:
            client.close()
        return answer

    return await asyncio.to_thread(ask)


async def test_a_kserve_client_sees_live_and_ready() -> None:
    """Version 2 of KServe's protocol: alive and ready, and alive but unready while it drains."""
    async with listening() as h:
        assert await asked(h, "is_server_live")
        assert await asked(h, "is_server_ready")
        h.service.api.drain()
        assert await asked(h, "is_server_live")
        assert not await asked(h, "is_server_ready")


async def test_an_event_source_comes_back_to_its_stream() -> None:
    """A client that loses the connection sends the last id that it saw, and misses nothing: each
    partial image comes once, and the image at the end."""
    async with listening(FakeEngine(num_slots=1, step_s=0.02)) as h:
        body = {"class_id": 6, "seed": 2, "partial_images": 3}
        accepted = await h.generate({"prefer": "respond-async"}, **body)
        url, last = accepted.headers["location"] + "/events", ""
        events: list[httpx_sse.ServerSentEvent] = []
        while not events or events[-1].event != "completed":
            headers = {"last-event-id": last} if last else {}
            async with httpx_sse.aconnect_sse(h.client, "GET", url, headers=headers) as source:
                async for event in source.aiter_sse():
                    assert 1000 == event.retry
                    last = event.id
                    events.append(event)
                    if event.event == "partial_image":
                        break  # the connection is lost
    partials = [event.json() for event in events if event.event == "partial_image"]
    assert [4, 8, 12] == [round(partial["progress"] * NUM_STEPS) for partial in partials]
    (image,) = events[-1].json()["data"]
    assert expected_png(6, 2) == base64.b64decode(image["b64_json"])


def cut_off(connection: socket.socket) -> None:
    """Close a connection so that the other side is sent a reset and no farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
async def test_connections_cut_off_keep_no_slot(accept: str) -> None:
    """A hundred clients vanish while they wait: all their jobs are cancelled, no slot stays busy,
    and the next request is answered."""
    async with listening(FakeEngine(num_slots=8), max_queued_steps=10**6) as h:
        h.engine.gate.clear()
        content = b'{"class_id": 1}'
        head = (
            f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Accept: {accept}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        connections = [socket.create_connection(address_of(h)) for _ in range(NUM_CUT)]
        for connection in connections:
            connection.sendall(head.encode() + content)
        await h.until(lambda s: s.jobs_waiting + s.jobs_running == NUM_CUT)
        for connection in connections:
            cut_off(connection)
        h.engine.gate.set()
        stats = await h.until(lambda s: s.jobs_waiting == s.jobs_running == 0)
        # A few may have been drawn between the gate and the cut.
        assert NUM_CUT == stats.num_ended[JobState.CANCELLED] + stats.num_ended[JobState.SUCCEEDED]
        await h.until(lambda s: s.workers[0].free_slots == s.workers[0].num_slots)
        assert 200 == (await h.generate(class_id=1)).status_code


async def test_requests_one_after_the_other_share_a_connection() -> None:
    """Keep-alive survives every kind of answer, so that clients need not connect again."""
    answers: list[dict[str, Any]] = [
        {"headers": {"accept": "image/png"}, "class_id": 1},
        {"headers": {"accept": "text/event-stream"}, "class_id": 1},
        {"headers": {"prefer": "respond-async"}, "class_id": 1},
        {"class_id": 99},
    ]
    async with listening() as h:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=h.client.base_url, limits=limits, timeout=60
        ) as client:
            ports = set()
            for answer in answers:
                headers = answer.pop("headers", {})
                reply = await client.post(URL, json=answer, headers=headers)
                stream = reply.extensions["network_stream"]
                ports.add(stream.get_extra_info("client_addr"))
        assert 1 == len(ports)
