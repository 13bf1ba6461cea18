"""What a process does beside its main business: chores that nobody waits for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from service.errors import QueueUnavailable

logger = logging.getLogger("bar.queue")

ENDING_S = 2.0
AGAIN_S = 0.2


class Chores:
    """Calls to the queue's server that are nobody's business while it is away."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, call: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(_unless_away(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Give what is under way a moment to end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ENDING_S)


async def each_interval(seconds: float, call: Callable[[], Awaitable[object]]) -> None:
    """Call `call` for ever, with a pause of `seconds`; carry on while the server is away."""
    while True:
        await _unless_away(call())
        await asyncio.sleep(seconds)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; raise what ended one before.

    A library may take a cancellation for a time-out that comes at the same moment, or for a broken
    connection, and its caller goes on: whoever has not ended soon is cancelled again.
    """
    tasks = list(tasks)
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def _unless_away(call: Awaitable[object]) -> None:
    try:
        await call
    except QueueUnavailable as error:
        logger.debug("the queue's server is away: %s", error)
