"""Server-sent events, as the HTML standard describes them, over one ASGI response.

`delivery` says what is told; here is how it gets onto the wire, how a quiet stream is kept open
through proxies, and how it ends when the client has gone. Written out because the framework's
streaming response notices that only when it next sends, or not at all, depending on the server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import STATUSES, ClientDisconnected

HEARTBEAT_S = 15.0  # proxies close connections that are quiet for longer, often 60 s

RETRY_MS = 1000  # after which a client that lost the stream comes back

Event = tuple[str, bytes]  # name, data on one line
Emit = Callable[[Event, str], Awaitable[None]]  # the second is its id, "" for none


class EventStream(Response):
    """Answers with the events that `run` emits, until it returns or the client has gone.

    `run` returns the status that a plain answer would have had; what counts requests reads it.
    """

    media_type = "text/event-stream"

    def __init__(
        self, run: Callable[[Emit], Awaitable[int]], heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._run = run
        self._heartbeat_s = heartbeat_s
        self._quiet_since = time.monotonic()
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; when the client has gone, `run` is cancelled and waited for."""
        assert scope["type"] == "http"
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        running = asyncio.ensure_future(self._run(partial(self._emit, send)))
        beside = [asyncio.create_task(disconnected(receive)), asyncio.create_task(self._beat(send))]
        try:
            await asyncio.wait({running, *beside}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, *beside):
                task.cancel()
            await asyncio.wait({running})
        state = scope.setdefault("state", {})
        if running.cancelled():
            state["final_status"] = STATUSES[ClientDisconnected]
        else:
            state["final_status"] = 500
            state["final_status"] = running.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _emit(self, send: Send, event: Event, event_id: str) -> None:
        name, data = event
        # Within an event: some clients take a block of other lines for an event without data.
        lines = f"id: {event_id}\nretry: {RETRY_MS}\n" if event_id else ""
        await self._send(send, f"{lines}event: {name}\ndata: ".encode() + data + b"\n\n")

    async def _beat(self, send: Send) -> None:
        """Send a comment, which clients ignore, whenever nothing else was sent for a while."""
        while True:
            await asyncio.sleep(self._quiet_since + self._heartbeat_s - time.monotonic())
            if time.monotonic() >= self._quiet_since + self._heartbeat_s:
                await self._send(send, b":\n\n")

    async def _send(self, send: Send, text: bytes) -> None:
        self._quiet_since = time.monotonic()
        await send({"type": "http.response.body", "body": text, "more_body": True})


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone; the body has been read, so nothing else can arrive."""
    while (await receive())["type"] != "http.disconnect":
        pass
