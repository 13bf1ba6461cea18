"""A port beside the main business: probes and metrics, for those who operate the process.

`bar worker` answers nobody else; `bar serve` can move its metrics here, to where no client comes.
It runs in the process's event loop, on purpose: a loop that does not turn does not answer, and that
is what a liveness probe asks.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import NotFound, NotReady, ServiceError
from service.metrics import CONTENT_TYPE
from service.middleware import error_response
from service.worker_health import WorkerHealth

Scrape = Callable[[], Awaitable[bytes]]

LIVE = ("/livez", "/health", "/ping", "/v2/health/live")
READY = ("/readyz", "/v2/health/ready")
STARTED = ("/startupz",)
CLOSING_S = 1


def metrics_app(scrape: Scrape) -> Starlette:
    """Return an application that answers /metrics alone."""

    async def metrics(_: Request) -> Response:
        return Response(await scrape(), media_type=CONTENT_TYPE)

    return _app([Route("/metrics", metrics)])


def worker_app(
    health: WorkerHealth, scrape: Scrape, reach_queue: Callable[[], Awaitable[object]]
) -> Starlette:
    """Return an application that answers a worker's probes and /metrics.

    `reach_queue` raises QueueUnavailable while the queue's server is away: that makes a worker
    unready, and neither starting again nor another worker would help.
    """

    async def live(_: Request) -> Response:
        return _answer("live", health.why_not_live(), "not_live")

    async def started(_: Request) -> Response:
        return _answer("started", health.why_not_started(), "not_started")

    async def ready(_: Request) -> Response:
        answer = _answer("ready", health.why_not_ready(), "not_ready")
        await reach_queue()
        return answer

    probes = [(LIVE, live), (READY, ready), (STARTED, started)]
    app = metrics_app(scrape)
    app.routes.extend(Route(path, probe) for paths, probe in probes for path in paths)
    return app


def _answer(status: str, why_not: str | None, code: str) -> Response:
    if why_not is not None:
        raise NotReady(why_not, code=code)
    return JSONResponse({"status": status})


def _app(routes: list[Route]) -> Starlette:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return error_response(error)

    async def not_found(_: Request, __: Exception) -> Response:
        return error_response(NotFound("there are only probes and metrics here"))

    return Starlette(routes=routes, exception_handlers={ServiceError: refuse, 404: not_found})


@contextlib.asynccontextmanager
async def open_side_port(app: Starlette, listener: socket.socket | None) -> AsyncIterator[None]:
    """Answer at `listener`, if there is one, as long as the block runs."""
    if listener is None:
        yield
        return
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=CLOSING_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield
