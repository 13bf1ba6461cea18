"""Tells those who wait in this process that a job has changed.

One pub/sub connection brings messages at once; they are only a hint, and may be lost. So one loop
also looks at every job that somebody waits for, each second and after every reconnection. What a
waiter then sees it reads for itself.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.errors import QueueUnavailable
from service.queue_keys import Keys
from service.redis_client import BLOCKING_S, commands

logger = logging.getLogger("bar.queue")

RECONCILE_S = 1.0
RECONNECT_S = 0.2


class RedisWatch:
    """The jobs that somebody in this process waits for."""

    def __init__(self, client: Redis, subscriber: Redis, keys: Keys) -> None:
        self._client = client
        self._subscriber = subscriber
        self._keys = keys
        self._signals: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._seen: dict[str, object] = {}

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the job may have changed."""
        signal = asyncio.Event()
        self._signals[job_id].add(signal)
        try:
            yield signal
        finally:
            self._signals[job_id].discard(signal)
            if not self._signals[job_id]:
                del self._signals[job_id]
                self._seen.pop(job_id, None)

    def notify(self, job_id: str) -> None:
        """Wake those who wait for the job."""
        for signal in self._signals.get(job_id, ()):
            signal.set()

    def notify_all(self) -> None:
        """Wake everybody who waits here."""
        for job_id in self._signals:
            self.notify(job_id)

    async def reconcile(self) -> None:
        """Look at all watched jobs, and wake those who wait for one that is not as it was.

        Raises: QueueUnavailable.
        """
        watched = list(self._signals)
        if not watched:
            return
        batch = [("HMGET", self._keys.job(job_id), "state", "version") for job_id in watched]
        answers = await commands(self._client, batch)
        for job_id, now in zip(watched, answers, strict=True):
            if job_id in self._signals and self._seen.get(job_id) != now:
                self._seen[job_id] = now
                self.notify(job_id)

    async def listen(self, channel: str, on_message: Callable[[str], None]) -> None:
        """Hand on what is said in `channel`, for ever; reconcile whenever the line was down.

        As the one connection that always stands, it also tells the log of each outage: each of its
        errors once.
        """
        told: set[str] = set()
        while True:
            try:
                async with self._subscriber.pubsub() as pubsub:
                    await pubsub.subscribe(channel)
                    if told:
                        logger.info("the queue's server answers again")
                        told.clear()
                    # What was said before the subscription is known by looking.
                    await self.reconcile()
                    while True:
                        message = await pubsub.get_message(
                            ignore_subscribe_messages=True, timeout=BLOCKING_S
                        )
                        if message:
                            on_message(message["data"].decode())
            except (RedisError, OSError, QueueUnavailable) as error:
                if str(error) not in told:
                    logger.warning("the queue's server is away: %s", error)
                told.add(str(error))
            await asyncio.sleep(RECONNECT_S)
