"""The queue's state changes on a Redis server: one method for each script in lua/.

Between the verbs of `RedisJobQueue` and the wire. Every script is atomic and may run twice without
further effect, so that a reply that got lost costs nothing but another call. Their clock is the
server's: machines disagree about the time, and leases are compared across machines. Tests pass a
clock of their own.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis
from redis.asyncio import Redis

from service.jobs import IdempotencyKey, Job, JobProgress, JobState
from service.logs import log_job
from service.payloads import encode_job
from service.queue_keys import Keys
from service.queue_policy import QueuePolicy
from service.redis_client import BUDGET_S, Script, persist
from service.stored_job import FIELDS, StoredJob

NAMES = (
    "admit", "cancel", "claim", "complete", "fail", "follow", "forget", "jobs_of",
    "partial", "progress", "reap", "release", "renew", "retry", "stage", "stats",
)  # fmt: skip

Hold = tuple[str, str]  # the id of a claimed job, and the claim's token
Cursor = tuple[float, str]  # a listed job's created_at and id


@dataclass(frozen=True, kw_only=True)
class ClaimReply:
    """One claimed job as it came from the server."""

    job_id: str
    token: str
    payload: bytes
    queue_s: float
    is_solo: bool
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of an owner's jobs, the newest first."""

    jobs: Sequence[StoredJob]
    rest: Cursor | None  # behind which there may be more, None if there are none


class QueueScripts:
    """The scripts of one queue on one server."""

    def __init__(
        self,
        client: Redis,
        keys: Keys,
        policy: QueuePolicy,
        *,
        scripts: Mapping[str, Script] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._quota_of = policy.quota_of
        self._policy = _policy_json(policy)
        self._scripts = scripts or {name: Script.load(name) for name in NAMES}
        self._clock = clock

    async def admit(
        self, job: Job, *, api: str, is_forced: bool, idempotency: IdempotencyKey | None
    ) -> tuple[str, str]:
        """Return what became of it (see admit.lua), and an id or a number."""
        key_hash, fingerprint = (
            (idempotency.key_hash, idempotency.fingerprint) if idempotency else ("", "")
        )
        reply = await self._run(
            "admit", job.id, encode_job(job), job.cost, len(job.images), job.owner,
            _us(job.lead_s), _us(job.timeout_s), api, int(is_forced), key_hash, fingerprint,
            repr(job.created_at), job.fingerprint, self._quota_of(job),
        )  # fmt: skip
        word, *rest = [part.decode() for part in reply]
        return word, rest[0] if rest else ""

    async def claim(
        self, worker: str, nonce: str, limit: int, *, is_idle: bool
    ) -> list[ClaimReply]:
        moved, *rows = await self._run("claim", worker, nonce, limit, int(is_idle))
        _log_moved(moved)
        return [
            ClaimReply(
                job_id=row[0].decode(),
                token=row[1].decode(),
                payload=row[2],
                queue_s=int(row[3]) / 1e6,
                is_solo=row[4] == b"1",
                attempt=int(row[5]),
            )
            for row in rows
        ]

    async def renew(self, worker: str, holds: Iterable[Hold]) -> list[str]:
        """Renew the leases; return the ids that are lost."""
        return [i.decode() for i in await self._run("renew", worker, *_flat(holds))]

    def renew_blocking(
        self, client: "redis.Redis", worker: str, holds: Iterable[Hold]
    ) -> list[str]:
        """Do the same from a thread without an event loop, in one attempt."""
        args = self._args("renew", (worker, *_flat(holds)))
        lost = self._scripts["renew"].call_blocking(client, self._keys.meta, args)
        return [i.decode() for i in lost]

    async def stage(self, hold: Hold, content: bytes) -> bool:
        """Lay a result down unseen; False if the job is not the worker's any more."""
        return bool(await self._run("stage", *hold, content))

    async def complete(self, hold: Hold) -> str:
        reply: bytes = await self._run("complete", *hold)
        return reply.decode()

    async def fail(self, hold: Hold, error: str, *, is_retryable: bool) -> str:
        what_helps = "again" if is_retryable else "never"
        reply: bytes = await self._run("fail", *hold, error, what_helps)
        return reply.decode()

    async def pass_on(self, hold: Hold, reason: str) -> None:
        """Leave a job to other workers, after a moment and without an attempt less."""
        await self._run("fail", *hold, reason, "elsewhere")

    async def release(self, worker: str, holds: Iterable[Hold]) -> None:
        await self._run("release", worker, *_flat(holds))

    async def cancel(self, job_id: str, target: JobState) -> JobState | None:
        """End the job in `target` unless it has ended; return the state that it was in."""
        state = await self._run("cancel", job_id, str(target))
        return JobState(state.decode()) if state else None

    async def follow(self, job_id: str, api: str) -> None:
        """Let the API named `api` hear of a job that another one admitted."""
        await self._run("follow", job_id, api)

    async def jobs_of(
        self,
        owner: str,
        states: Iterable[JobState],
        before: Cursor | None,
        limit: int,
    ) -> Page:
        """Return up to `limit` jobs of an owner in one of `states` (none: in any), the newest
        first, from the one after `before` on."""
        score, last = before or (0.0, "")
        seen, num_ready, queued_cost, rows = await self._run(
            "jobs_of", owner, " ".join(states), repr(score), last, limit, *FIELDS
        )
        return Page(
            jobs=[
                StoredJob(
                    job_id.decode(),
                    dict(zip(FIELDS, values, strict=True)),
                    rank,
                    num_ready,
                    int(queued_cost),
                )
                for job_id, rank, values in rows
            ],
            rest=(float(seen[0]), seen[1].decode()) if seen else None,
        )

    async def forget(self, job_id: str) -> None:
        await self._run("forget", job_id)

    async def reap(self) -> None:
        _log_moved(await self._run("reap"))

    async def progress(self, jobs: Iterable[tuple[Hold, JobProgress]]) -> None:
        args: list[str | float] = []
        for hold, progress in jobs:
            eta = "" if progress.eta_s is None else repr(progress.eta_s)
            args += [*hold, repr(progress.share), eta]
        await self._run("progress", *args)

    async def partial(self, hold: Hold, content: bytes) -> None:
        await self._run("partial", *hold, content, secrets.token_hex(8))

    async def retry(self, job_id: str, new_id: str) -> str | None:
        """Admit a dead job anew; return its new id, None if there is no such dead job."""
        reply: bytes | None = await self._run("retry", job_id, new_id)
        return reply.decode() if reply else None

    async def stats(self) -> tuple[list[float], dict[str, str]]:
        """Return jobs waiting, running and dead, the oldest's age in s; and the counters."""
        waiting, running, dead, oldest_us, meta = await self._run("stats")
        counters = {
            name.decode(): value.decode() for name, value in zip(meta[::2], meta[1::2], strict=True)
        }
        return [waiting, running, dead, int(oldest_us) / 1e6], counters

    async def _run(self, name: str, *args: Any) -> Any:
        full = self._args(name, args)
        script = self._scripts[name]
        return await persist(lambda: script.call(self._client, self._keys.meta, full), BUDGET_S)

    def _args(self, name: str, args: Sequence[Any]) -> list[Any]:
        assert name in NAMES
        now = "" if self._clock is None else _us(self._clock())
        return [self._keys.prefix, now, self._policy, *args]


def _log_moved(moved: Sequence[bytes]) -> None:
    """Log what the queue has done of itself; whichever process ran the script does it, once."""
    reasons = {"queued": "its worker was lost", "dead": "its workers were lost"}
    for job_id, state in zip(moved[::2], moved[1::2], strict=True):
        name = state.decode()
        log_job(job_id.decode(), name, reason=reasons.get(name, "its time was up"))


def _flat(holds: Iterable[Hold]) -> list[str]:
    return [part for hold in holds for part in hold]


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _policy_json(policy: QueuePolicy) -> str:
    """Return the policy as the scripts read it: ttl in ms, other times in µs."""
    values = asdict(policy)
    ttl = {
        f"{name.removesuffix('_ttl_s')}_ttl_ms": round(seconds * 1e3)
        for name, seconds in values.items()
        if name.endswith("_ttl_s")
    }
    counts = {name: n for name, n in values.items() if isinstance(n, int)}
    return json.dumps(
        {
            **ttl,
            **counts,
            "claim_ttl_ms": round(policy.lease_s * 1e3),
            "lease_us": _us(policy.lease_s),
            "reap_us": _us(policy.reap_interval_s),
            "solo_from": policy.solo_from_crashes,
            "backoff_us": _us(policy.backoff_s),
            "max_backoff_us": _us(policy.max_backoff_s),
        },
        sort_keys=True,
    )
