"""What surrounds every request: its id, its time, its place in the metrics, the bound of its body.

Pure ASGI: a middleware that hides `http.disconnect` from the application would keep slots busy for
clients that have left. It stands outside the application, so that answers to unexpected errors
carry their id too.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import BodyTooLarge, BodyTooSlow, GenerationFailed, ServiceError
from service.metrics import Metrics, endpoint_of, method_label
from service.tracing import RequestTrace, Traces, read_traceparent

logger = logging.getLogger("bar.http")

BODY_S = 20.0  # for a body to arrive: whoever sends it slowly holds up a server that would stop

NO_TRACES = Traces()


def error_response(error: ServiceError) -> JSONResponse:
    """Return the answer to a request that ends in `error`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, GenerationFailed):  # it would fail again; clients retry any other 5xx
        headers["X-Should-Retry"] = "false"
    return JSONResponse(error.envelope(), error.status, headers)


class Observation:
    """Gives each request an id and a trace, and measures it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its id in `scope["state"]`, and count it when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        # Made here, never taken from the client: its text shall not reach headers or logs.
        request_id = scope.setdefault("state", {})["request_id"] = f"req_{secrets.token_hex(12)}"
        logs.request_id.set(request_id)
        trace = self._trace(scope)
        scope["state"]["traceparent"] = trace.traceparent
        context = [(b"traceparent", trace.traceparent.encode())] if trace.traceparent else []
        status = 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = (time.monotonic() - started) * 1000
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", f"total;dur={elapsed_ms:.1f}".encode()),
                    *context,
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            # An answer that begins with 200 may end otherwise: whoever knows says so.
            status = scope["state"].get("final_status", status)
            self._record(scope, trace, status, time.monotonic() - started)

    def _trace(self, scope: Scope) -> RequestTrace:
        sent = [value for name, value in scope["headers"] if name == b"traceparent"]
        # Probes and scrapes come every few seconds, and nobody asks where their time went.
        traces = self._traces if scope["path"].startswith("/v1/") else NO_TRACES
        return traces.request(method_label(scope["method"]), read_traceparent(sent))

    def _record(self, scope: Scope, trace: RequestTrace, status: int, seconds: float) -> None:
        # The route's pattern, not the path: clients can make up any number of paths.
        method, state = scope["method"], scope["state"]
        handler = getattr(scope.get("route"), "path", "unmatched")
        trace.end(handler, status)
        self._metrics.observe_http(handler, method, status, seconds)
        endpoint = endpoint_of(method, handler)
        if endpoint:
            self._metrics.observe_request(state.get("model_name", ""), endpoint, status, seconds)
        # The lines of its job tell of a request that had one.
        is_news = status >= 500 or (endpoint is not None and status >= 400)
        logger.log(
            logging.INFO if is_news else logging.DEBUG,
            "answered",
            extra={
                "request": state["request_id"],
                "method": method,
                "handler": handler,
                "status": status,
                "seconds": round(seconds, 4),
                **({"error": state["error_code"]} if "error_code" in state else {}),
            },
        )


class BodyLimit:
    """Reads a request's body, at most `max_bytes` of it and for `body_s` at most, before the
    application sees the request; `max_bytes_of` are paths with a bound of their own.

    What counts is what arrives, whatever Content-Length says.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_bytes_of: Mapping[str, int],
        body_s: float = BODY_S,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_bytes_of = max_bytes_of
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body in one piece, or answer 408 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._body_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = BodyTooSlow(f"the body did not arrive within {self._body_s:g} seconds")
            await self._refuse(error, scope, receive, send)
            return
        except BodyTooLarge as error:
            await self._refuse(error, scope, receive, send)
            return
        if body is None:
            return
        replayed = False

        async def receive_whole() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None if its client has gone. Raises: BodyTooLarge."""
        max_bytes = self._max_bytes_of.get(scope["path"], self._max_bytes)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > max_bytes:
                raise BodyTooLarge(f"the body is larger than {max_bytes} bytes")
        return bytes(body)

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = error_response(error)
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)
