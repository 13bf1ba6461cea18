"""The process behind `bar worker`: one engine, and the jobs of a queue on a Redis server.

On SIGTERM it claims nothing more, finishes what it holds, and hands back what is not done at the
end of the grace time; either way it ends with status 0 and no job has lost an attempt. When nothing
moves any more it ends by itself, so that its leases lapse and others take over.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from model.zoo import ModelInfo
from service.engine_driver import EngineThread
from service.metrics import process_registry
from service.queue_policy import QueuePolicy
from service.redis_client import command, connect
from service.redis_work import RedisWorkQueue
from service.server import process_name
from service.settings import Settings
from service.side_port import open_side_port, worker_app
from service.tracing import make_traces
from service.worker import WorkerParts
from service.worker_health import WorkerHealth
from service.worker_metrics import WorkerMetrics
from service.worker_start import run_worker

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.worker")

EXIT_STALLED = 70  # "internal software error": a supervisor starts another


@dataclass(frozen=True)
class WorkerProcess:
    """The parts of a worker process."""

    settings: Settings
    queue: RedisWorkQueue
    parts: WorkerParts
    registry: CollectorRegistry

    @property
    def thread(self) -> EngineThread:
        return self.parts.thread

    @classmethod
    def make(
        cls,
        settings: Settings,
        info: ModelInfo,
        policy: QueuePolicy,
        load_engine: Callable[[], "Engine"],
    ) -> "WorkerProcess":
        """Wire the parts."""
        assert settings.redis_url is not None
        queue = RedisWorkQueue(
            settings.redis_url, info.name, policy,
            name=process_name(), stall_s=settings.stall_s, on_stall=_end_stalled,
        )  # fmt: skip
        health = WorkerHealth(settings.stall_s)
        registry = process_registry({info.name: info.revision})
        parts = WorkerParts(
            name=queue.name,
            info=info,
            queue=queue,
            load_engine=load_engine,
            thread=EngineThread(),
            health=health,
            metrics=WorkerMetrics(registry, info.name, health),
            traces=make_traces(settings, queue.name),
            target_step_s=settings.target_step_s,
            canary_interval_s=settings.canary_interval_s,
        )
        return cls(settings, queue, parts, registry)

    async def run(
        self,
        on_ready: Callable[[], None] = lambda: None,
        listener: socket.socket | None = None,
    ) -> None:
        """Work until a signal comes, then finish or hand back; answer probes at `listener`.

        Raises: what `load_engine` raises, and EngineLost after all jobs were handed back.
        """
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        async with self._probes(listener), self.queue.running():
            working = asyncio.create_task(run_worker(self.parts, on_ready))
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            self.parts.health.is_stopping = True
            if not working.done():
                logger.info("stopping", extra={"grace_s": self.settings.shutdown_grace_s})
                await asyncio.wait({working}, timeout=self._grace_s())
            working.cancel()
            await asyncio.wait({working})
        self.parts.traces.close()
        if not working.cancelled():
            working.result()
        logger.info("stopped")

    @asynccontextmanager
    async def _probes(self, listener: socket.socket | None) -> AsyncIterator[None]:
        assert self.settings.redis_url is not None
        client = connect(self.settings.redis_url, max_connections=2)

        async def scrape() -> bytes:
            return generate_latest(self.registry)

        async def reach_queue() -> None:
            await command(client, "PING", budget_s=0.0)

        try:
            app = worker_app(self.parts.health, scrape, reach_queue)
            async with open_side_port(app, listener):
                yield
        finally:
            await client.aclose()
            await client.connection_pool.disconnect()

    def _grace_s(self) -> float:
        """Nothing is held while the weights load: then there is nothing to finish."""
        return self.settings.shutdown_grace_s if self.queue.num_held else 0.1


def _end_stalled() -> None:
    logging.shutdown()
    os._exit(EXIT_STALLED)
