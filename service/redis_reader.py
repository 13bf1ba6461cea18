"""Reads jobs, workers and dead letters from the queue's server; what it reads is checked.

Beside the scripts, which change things: a view of one job is a handful of commands in one round
trip, and need not be atomic, because a job's version tells of any change in between.
"""

import logging
import time
from collections.abc import Iterator, Sequence

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from service.jobs import DeadLetter, Job, JobState, JobView, KnownJob, WorkerStatus
from service.payloads import PayloadError, decode_job, decode_status, encode_status
from service.queue_keys import Keys
from service.redis_client import command, commands
from service.stored_job import FIELDS, StoredJob

logger = logging.getLogger("bar.queue")

HEARTBEAT_TTL_S = 10.0


class RedisReader:
    """Reads of one queue, and workers' words about themselves."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def state(self, job_id: str) -> JobState | None:
        """Return the state of a job, None if there is no such job."""
        state = await command(self._client, "HGET", self._keys.job(job_id), "state")
        return JobState(state.decode()) if state else None

    async def view(self, job_id: str, workers: Sequence[WorkerStatus]) -> JobView | None:
        """Return how a job is, None if there is no such job."""
        stored = await self._stored(job_id, with_result=True)
        return stored.view(workers) if stored else None

    async def find(
        self, job_id: str, workers: Sequence[WorkerStatus], *, with_result: bool
    ) -> KnownJob | None:
        """Return what is known of a job, None if there is no such job.

        Raises: PayloadError if its payload cannot be read.
        """
        stored = await self._stored(job_id, with_result=with_result)
        return stored.known(workers) if stored else None

    async def _stored(self, job_id: str, *, with_result: bool) -> StoredJob | None:
        keys = self._keys
        contents = [("LRANGE", keys.partials(job_id), 0, -1), ("GET", keys.result(job_id))]
        values, rank, num_ready, cost, *rest = await commands(
            self._client,
            [
                ("HMGET", keys.job(job_id), *FIELDS),
                ("ZRANK", keys.ready, job_id),
                ("ZCARD", keys.ready),
                ("HGET", keys.meta, "queued_cost"),
                *(contents if with_result else ()),
            ],
        )
        fields = dict(zip(FIELDS, values, strict=True))
        if fields["state"] is None:
            return None
        partials, result = rest if with_result else ((), None)
        return StoredJob(job_id, fields, rank, num_ready, int(cost or 0), partials, result)

    async def knows_key(self, owner: str, key_hash: str) -> bool:
        """Say whether an idempotency key of `owner` stands for a request. Raises:
        QueueUnavailable."""
        key = self._keys.idempotency_key(owner, key_hash)
        return bool(await command(self._client, "EXISTS", key))

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Return what each live worker last said of itself."""
        names = await command(self._client, "ZRANGE", self._keys.workers, 0, -1)
        if not names:
            return ()
        keys = [self._keys.heartbeat(name.decode()) for name in names]
        return tuple(_statuses(await command(self._client, "MGET", *keys)))

    async def memory_bytes(self) -> dict[str, int]:
        """Return how much memory the server uses, and its limit if it has one; nothing where it
        does not tell everybody."""
        try:
            info: dict[str, int] = await command(self._client, "INFO", "memory")
        except NoPermissionError:  # often withheld together with what is dangerous
            return {}
        kinds = {"used": "used_memory", "limit": "maxmemory"}
        return {kind: info[name] for kind, name in kinds.items() if info.get(name)}

    async def say(self, status: WorkerStatus) -> None:
        """Say how a worker is; what is not repeated is forgotten."""
        now, keys = time.time(), self._keys
        ttl_ms = round(HEARTBEAT_TTL_S * 1e3)
        await commands(
            self._client,
            [
                ("SET", keys.heartbeat(status.name), encode_status(status), "PX", ttl_ms),
                ("ZADD", keys.workers, now, status.name),
                ("ZREMRANGEBYSCORE", keys.workers, "-inf", now - 10 * HEARTBEAT_TTL_S),
            ],
        )

    async def leave(self, worker: str) -> None:
        """Say that a worker ends."""
        keys = self._keys
        batch = [("DEL", keys.heartbeat(worker)), ("ZREM", keys.workers, worker)]
        await commands(self._client, batch)

    async def wait_bell(self, client: Redis, timeout_s: float) -> bool:
        """Return whether the bell rang within `timeout_s`. Raises: QueueUnavailable."""
        reply = await command(client, "BLPOP", self._keys.bell, timeout_s, budget_s=0.0)
        return reply is not None

    async def ring_bell(self) -> None:
        """Wake an idle worker. Raises: QueueUnavailable."""
        ttl_ms = round(HEARTBEAT_TTL_S * 1e3)
        batch = [("LPUSH", self._keys.bell, "1"), ("PEXPIRE", self._keys.bell, ttl_ms)]
        await commands(self._client, batch)

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead jobs."""
        ids = await command(self._client, "ZREVRANGE", self._keys.dead, 0, limit - 1)
        return [letter for i in ids if (letter := await self._dead_letter(i.decode()))]

    async def _dead_letter(self, job_id: str) -> DeadLetter | None:
        values = await command(self._client, "HMGET", self._keys.job(job_id), *FIELDS)
        fields = dict(zip(FIELDS, values, strict=True))
        if fields["state"] != b"dead":
            return None
        return DeadLetter(
            id=job_id,
            died_at=int(fields["ended"]) / 1e6,
            crashes=int(fields["crashes"]),
            error=fields["error"].decode(),
            owner=fields["owner"].decode(),
            job=_job_or_none(job_id, fields["payload"]),
        )


def _job_or_none(job_id: str, payload: bytes) -> Job | None:
    try:
        return decode_job(job_id, payload)
    except PayloadError:
        return None


def _statuses(contents: Sequence[bytes | None]) -> Iterator[WorkerStatus]:
    """Yield what can be read: what a worker of another version says may not be."""
    for content in contents:
        if content is None:
            continue
        try:
            yield decode_status(content)
        except PayloadError as error:
            logger.warning("a worker's status cannot be read: %s", error)
