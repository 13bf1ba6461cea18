"""The process behind `bar serve`: its objects wired together, its start and its end.

`bootstrap` builds everything once and hands each part what it needs; there are no globals. With a
queue in memory the engine is here too, and its weights load in its thread while the API is up
already; with a queue on a Redis server this process is the API alone. On SIGTERM or SIGINT no
further request is accepted, what was accepted is answered, and what is not done within the grace
time is answered with 503.
"""

import asyncio
import contextlib
import errno
import logging
import math
import os
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from model.zoo import ModelInfo
from service.api import Api
from service.engine_driver import EngineThread
from service.errors import StartupError
from service.job_queue import JobQueue
from service.memory_queue import MemoryJobQueue
from service.metrics import Metrics
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.served_models import ServedModel, ServedModels
from service.settings import Settings
from service.side_port import metrics_app, open_side_port
from service.tracing import Traces, make_traces
from service.worker import WorkerParts
from service.worker_health import WorkerHealth
from service.worker_metrics import WorkerMetrics
from service.worker_start import run_worker

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.server")

CLOSING_S = 5  # to send answers after the grace time
FOREVER_S = 1e9


@dataclass(frozen=True)
class Service:
    """The parts of one process."""

    settings: Settings
    models: ServedModels
    metrics: Metrics
    traces: Traces
    api: Api
    worker: "LocalWorker | None"  # None: the workers are other processes

    @property
    def info(self) -> ModelInfo:
        return self.models.default.info

    @property
    def queue(self) -> JobQueue:
        return self.models.default.queue


@dataclass(frozen=True)
class LocalWorker:
    """A worker in the process of its API."""

    thread: EngineThread
    health: WorkerHealth
    run: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]


def bootstrap(
    settings: Settings,
    info: ModelInfo,
    load_engine: Callable[[], "Engine"],
    traces: Traces | None = None,
) -> Service:
    """Wire the parts of a process that serves `info` all by itself.

    Raises: StartupError if the queue could never hold the largest request.
    """
    _check_bound(settings, info)
    traces = traces or make_traces(settings, process_name())
    # Nobody else could try again, and a hung step would only be made again by the same worker.
    policy = replace(make_policy(settings), max_attempts=1, lease_s=FOREVER_S)
    queue = MemoryJobQueue(policy)
    metrics = Metrics({info.name: info.revision})
    health = WorkerHealth(settings.stall_s)
    parts = WorkerParts(
        name="local",
        info=info,
        queue=queue,
        load_engine=load_engine,
        thread=EngineThread(),
        health=health,
        metrics=WorkerMetrics(metrics.registry, info.name, health),
        traces=traces,
        target_step_s=settings.target_step_s,
        canary_interval_s=settings.canary_interval_s,
    )
    models = ServedModels([ServedModel(info, queue)])
    api = Api(settings=settings, models=models, metrics=metrics, traces=traces, health=health)
    return Service(
        settings,
        models,
        metrics,
        traces,
        api,
        LocalWorker(parts.thread, health, partial(run_worker, parts)),
    )


def bootstrap_api(settings: Settings, infos: Sequence[ModelInfo]) -> Service:
    """Wire the parts of an API of queues on the Redis server that `settings` name.

    Raises: StartupError if a queue could never hold the largest request.
    """
    assert settings.redis_url is not None
    policy, name = make_policy(settings), process_name()
    for info in infos:
        _check_bound(settings, info)
    models = ServedModels(
        [
            ServedModel(info, RedisJobQueue(settings.redis_url, info.name, policy, name=name))
            for info in infos
        ]
    )
    metrics = Metrics({info.name: info.revision for info in infos})
    traces = make_traces(settings, name)
    api = Api(settings=settings, models=models, metrics=metrics, traces=traces)
    return Service(settings, models, metrics, traces, api, None)


def make_policy(settings: Settings) -> QueuePolicy:
    """Return the numbers that the queue obeys; they must be the same in all its processes."""
    return QueuePolicy(
        max_queued_cost=settings.max_queued_steps,
        max_owner_jobs=settings.max_owner_jobs,
        lease_s=settings.lease_s,
        result_ttl_s=settings.result_ttl_s,
    )


def process_name() -> str:
    """Return a name that no other process has, not even one of the same machine and number."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _check_bound(settings: Settings, info: ModelInfo) -> None:
    largest = settings.max_images * info.generator.num_tokens
    if largest > settings.max_queued_steps:
        raise StartupError(
            f"max_queued_steps {settings.max_queued_steps} is less than a request for "
            f"max_images {settings.max_images} takes: {largest} steps"
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to `host` and `port`; connections are refused until it is served.

    Raises: StartupError says why that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that name their protocol, and only for those;
    # with it the body of an answer waits some 40 ms for the client to acknowledge the headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A restarted server gets its port although old connections linger on it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use already; choose another with --port"
        else:
            reason = error.strerror or str(error)
        raise StartupError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


async def serve(
    service: Service,
    listener: socket.socket,
    on_ready: Callable[[], None] = lambda: None,
    metrics_listener: socket.socket | None = None,
) -> None:
    """Serve until a signal comes, then finish what was accepted.

    Raises: what ended the worker, if the worker ended by itself.
    """
    server = _Server(service, on_ready if service.worker is None else lambda: None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop_by_signal)
    async with contextlib.AsyncExitStack() as queues:
        queues.callback(service.traces.close)
        queues.push_async_callback(service.api.close)
        for served in service.models:
            await queues.enter_async_context(served.queue.running())
        metrics = metrics_app(lambda: service.metrics.scrape(service.models.queues))
        await queues.enter_async_context(open_side_port(metrics, metrics_listener))
        if service.worker is None:
            await server.serve(sockets=[listener])
        else:
            await _serve_with_worker(server, service.worker, listener, on_ready)
        if server.closing:
            server.closing.cancel()
    logger.info("stopped")


async def _serve_with_worker(
    server: "_Server",
    local: LocalWorker,
    listener: socket.socket,
    on_ready: Callable[[], None],
) -> None:
    worker = asyncio.create_task(local.run(on_ready))
    worker.add_done_callback(server.stop_without_worker)
    await server.serve(sockets=[listener])
    worker.cancel()
    await asyncio.wait({worker})
    if not worker.cancelled():
        worker.result()


class _Server(uvicorn.Server):
    """uvicorn, but it stops our way: accepted jobs are finished, and the exit status is 0."""

    def __init__(self, service: Service, on_listening: Callable[[], None]) -> None:
        self._service = service
        self._on_listening = on_listening
        self.closing: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                service.api.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=math.ceil(service.settings.shutdown_grace_s) + CLOSING_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so only then."""
        await super().startup(sockets)
        self._on_listening()

    def stop_by_signal(self) -> None:
        """Stop within the grace time; at the second signal, at once."""
        self.stop(grace_s=0 if self.should_exit else self._service.settings.shutdown_grace_s)

    def stop_without_worker(self, worker: asyncio.Task[None]) -> None:
        """Stop at once if the worker ended by itself: nothing can be finished."""
        if not worker.cancelled():
            self.stop(grace_s=0)

    def stop(self, grace_s: float) -> None:
        """Accept nothing more; cancel what is not finished after `grace_s` seconds."""
        logger.info("stopping", extra={"grace_s": grace_s})
        self._service.api.drain()
        self.should_exit = True
        if self.closing:
            self.closing.cancel()
        self.closing = asyncio.create_task(self._close_after(grace_s))

    async def _close_after(self, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        for served in self._service.models:
            await served.queue.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again at the end, and die of them."""
        yield
