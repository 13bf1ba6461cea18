"""The process behind `bar worker`: one engine, and the jobs of a queue on a Redis server.

On SIGTERM it claims nothing more, finishes what it holds, and hands back what is not done at the
end of the grace time; either way it ends with status 0 and no job has lost an attempt. When nothing
moves any more it ends by itself, so that its leases lapse and others take over.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from model.zoo import ModelInfo
from service.engine_driver import EngineThread
from service.metrics import Metrics
from service.queue_policy import QueuePolicy
from service.redis_work import RedisWorkQueue
from service.server import process_name
from service.settings import Settings
from service.worker import run_worker

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.worker")

EXIT_STALLED = 70  # "internal software error": a supervisor starts another


@dataclass(frozen=True)
class WorkerProcess:
    """The parts of a worker process."""

    settings: Settings
    info: ModelInfo
    queue: RedisWorkQueue
    thread: EngineThread
    load_engine: Callable[[], "Engine"]

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
        return cls(settings, info, queue, EngineThread(), load_engine)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Work until a signal comes, then finish or hand back.

        Raises: what `load_engine` raises, and EngineLost after all jobs were handed back.
        """
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        async with self.queue.running():
            working = asyncio.create_task(self._work(on_ready, stopping))
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not working.done():
                logger.info("stopping", extra={"grace_s": self.settings.shutdown_grace_s})
                await asyncio.wait({working}, timeout=self._grace_s())
            working.cancel()
            await asyncio.wait({working})
        if not working.cancelled():
            working.result()
        logger.info("stopped")

    def _grace_s(self) -> float:
        """Nothing is held while the weights load: then there is nothing to finish."""
        return self.settings.shutdown_grace_s if self.queue.num_held else 0.1

    async def _work(self, on_ready: Callable[[], None], stopping: asyncio.Event) -> None:
        work = partial(
            run_worker,
            name=self.queue.name,
            info=self.info,
            queue=self.queue,
            load_engine=self.load_engine,
            metrics=Metrics({self.info.name: self.info.revision}),
            thread=self.thread,
            target_step_s=self.settings.target_step_s,
            stopping=stopping,
        )
        await work(on_ready)


def _end_stalled() -> None:
    logging.shutdown()
    os._exit(EXIT_STALLED)
