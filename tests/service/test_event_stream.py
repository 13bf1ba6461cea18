"""Facts of the event stream: events on the wire, a heartbeat in the silence, an end."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Message

from service.event_stream import Emit, EventStream

pytestmark = pytest.mark.anyio

SCOPE: dict[str, Any] = {"type": "http"}


class Client:
    """The other end: collects what is sent, and leaves when told to."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gone = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def has_end(self) -> bool:
        return self.messages[-1].get("more_body") is False


async def test_events_are_named_lines() -> None:
    """An event is its id, if any, its name, its data and an empty line; nobody keeps the answer."""

    async def run(emit: Emit) -> int:
        await emit(("progress", b'{"a": 1}'), "3-0")
        await emit(("completed", b"{}"), "")
        return 200

    client = Client()
    await EventStream(run)(SCOPE, client.receive, client.send)
    assert (
        b'id: 3-0\nretry: 1000\nevent: progress\ndata: {"a": 1}\n\nevent: completed\ndata: {}\n\n'
    ) == client.text
    assert client.has_end
    headers = dict(client.messages[0]["headers"])
    assert b"text/event-stream; charset=utf-8" == headers[b"content-type"]
    assert (b"no-store", b"no") == (headers[b"cache-control"], headers[b"x-accel-buffering"])
    assert b"content-length" not in headers


async def test_silence_is_broken_by_comments() -> None:
    """When nothing happens a comment is sent again and again, and only then."""
    client = Client()

    async def run(emit: Emit) -> int:
        await emit(("progress", b"{}"), "")
        while client.text.count(b":\n\n") < 3:  # noqa: ASYNC110 - a client has no event
            await asyncio.sleep(0.001)
        return 200

    await EventStream(run, heartbeat_s=0.01)(SCOPE, client.receive, client.send)
    assert client.text.endswith(b"event: progress\ndata: {}\n\n" + b":\n\n" * 3)


async def test_who_leaves_is_noticed_in_the_silence() -> None:
    """When the client has gone, what runs for it is cancelled and has cleaned up at the return."""
    client, cleaned = Client(), []

    async def run(emit: Emit) -> int:
        client.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)
        return 200

    await EventStream(run)(SCOPE, client.receive, client.send)
    assert [True] == cleaned
    assert not client.has_end


async def test_an_unexpected_error_is_not_an_end() -> None:
    """What `run` raises comes out, and the stream is cut, not finished."""

    async def run(emit: Emit) -> int:
        raise ValueError("broken")

    client = Client()
    with pytest.raises(ValueError, match="broken"):
        await EventStream(run)(SCOPE, client.receive, client.send)
    assert not client.has_end


@pytest.mark.parametrize(("ending", "status"), [("returns", 504), ("raises", 500), ("leaves", 499)])
async def test_how_it_ended_is_told_to_those_who_count(ending: str, status: int) -> None:
    """A stream begins with 200 whatever becomes of it."""
    client, scope = Client(), {"type": "http", "state": {"request_id": "req_1"}}

    async def run(emit: Emit) -> int:
        if ending == "raises":
            raise ValueError("broken")
        if ending == "leaves":
            client.gone.set()
            await asyncio.Event().wait()
        return 504

    with suppress(ValueError):
        await EventStream(run)(scope, client.receive, client.send)
    assert {"request_id": "req_1", "final_status": status} == scope["state"]
