"""A worker's end of the queue on a Redis server, with the verbs of `WorkQueue`.

It holds the claims that have not ended, and renews their leases from a thread. A slow or absent
server never stops running images: claims are taken up when they arrive, results are kept until they
are stored, and the leases of a whole fleet outlive an outage, because nobody reaps in its wake.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from service.chores import Chores, each_interval, end_tasks
from service.errors import QueueUnavailable
from service.jobs import Claim, JobProgress, JobResult, PartialImage, WorkerStatus
from service.lease_keeper import LeaseKeeper
from service.logs import log_job
from service.payloads import PayloadError, decode_job, encode_partial, encode_result
from service.queue_keys import Keys
from service.queue_policy import QueuePolicy
from service.redis_client import BLOCKING_S, connect
from service.redis_reader import RedisReader
from service.redis_scripts import ClaimReply, Hold, QueueScripts
from service.redis_watch import RedisWatch

logger = logging.getLogger("bar.queue")

CLAIM_PATIENCE_S = 0.005  # that running images wait for a claim's reply; it is taken up later
OUTAGE_PAUSE_S = 0.5
STALL_S = 30.0
HEARTBEAT_S = 1.0


class RedisWorkQueue:
    """A worker process's end of the queue named `queue` on the server at `url`.

    `name` tells processes apart. `on_stall` is called, in a thread, when claimed jobs have made no
    progress for `stall_s`. `clock` replaces the server's.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        policy: QueuePolicy,
        *,
        name: str,
        stall_s: float = STALL_S,
        on_stall: Callable[[], None] = lambda: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self._policy = policy
        self._keys = Keys(queue)
        self._client, self._bell, self._subscriber = connect(url), connect(url), connect(url)
        self._scripts = QueueScripts(self._client, self._keys, policy, clock=clock)
        self._reader = RedisReader(self._client, self._keys)
        self._watch = RedisWatch(self._client, self._subscriber, self._keys)
        self._held: dict[str, Claim] = {}  # replaced, not changed: another thread reads it
        self._lost: set[str] = set()  # ids of which the worker has not been told
        self._claiming: asyncio.Task[list[Claim]] | None = None
        self._patience_s = CLAIM_PATIENCE_S
        self._nonce = secrets.token_hex(8)
        self._status: WorkerStatus | None = None
        self._chores = Chores()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper = LeaseKeeper(
            self._scripts, url, name, lease_s=policy.lease_s, stall_s=stall_s,
            holds=self._holds, on_lost=self._on_lost, on_stall=on_stall,
        )  # fmt: skip

    @property
    def num_held(self) -> int:
        """How many claims have not ended."""
        return len(self._held)

    async def wait_ready(self) -> bool:
        self._keeper.beat()
        try:
            return await self._reader.wait_bell(self._bell, BLOCKING_S)
        except QueueUnavailable:
            await asyncio.sleep(OUTAGE_PAUSE_S)
            return False

    async def pass_on(self) -> None:
        with suppress(QueueUnavailable):  # workers look again by themselves
            await self._reader.ring_bell()

    async def claim(self, limit: int, *, has_news: bool = True) -> list[Claim]:
        if self._claiming is None:
            is_alone = any(claim.is_solo for claim in self._held.values())
            if limit <= 0 or is_alone or not has_news:
                return []
            self._claiming = asyncio.create_task(self._claim(limit))
        patience_s = self._patience_s if self._held else None
        await asyncio.wait({self._claiming}, timeout=patience_s)
        # What was lost may be among what is claimed: the worker drops the old claim first.
        if not self._claiming.done() or self._lost:
            return []
        task, self._claiming = self._claiming, None
        try:
            claims = task.result()
        except QueueUnavailable as error:
            logger.warning("nothing is claimed: %s", error)
            if not self._held:
                await asyncio.sleep(OUTAGE_PAUSE_S)
            return []
        return [claim for claim in claims if claim.job.id in self._held]

    async def _claim(self, limit: int) -> list[Claim]:
        is_idle = not self._held
        replies = await self._scripts.claim(self.name, self._nonce, limit, is_idle=is_idle)
        claims = [claim for reply in replies if (claim := await self._read_claim(reply))]
        self._nonce = secrets.token_hex(8)  # only now: a reply that got lost is asked for again
        self._held = {**self._held, **{claim.job.id: claim for claim in claims}}
        for claim in claims:
            log_job(claim.job.id, "running", attempt=claim.attempt, queue_s=claim.queue_s)
        return claims

    async def _read_claim(self, reply: ClaimReply) -> Claim | None:
        try:
            job = decode_job(reply.job_id, reply.payload)
        except PayloadError as error:
            await self._refuse((reply.job_id, reply.token), error)
            return None
        return Claim(
            job=job,
            queue_s=reply.queue_s,
            token=reply.token,
            is_solo=reply.is_solo,
            attempt=reply.attempt,
        )

    async def _refuse(self, hold: Hold, error: PayloadError) -> None:
        job = {"job": hold[0]}
        if error.is_newer:
            logger.warning("a job is left to newer workers: %s", error, extra=job)
            await self._scripts.pass_on(hold, "it needs a newer worker")
        else:
            logger.error("a job cannot be read: %s", error, extra=job)
            await self._scripts.fail(hold, "corrupt payload", is_retryable=False)

    async def revoked(self, job_ids: Iterable[str]) -> list[str]:
        self._keeper.beat()
        lost, self._lost = self._lost, set()
        return [job_id for job_id in job_ids if job_id not in self._held or job_id in lost]

    async def progress(self, jobs: Mapping[str, JobProgress]) -> None:
        known = [
            (_hold(self._held[i]), progress) for i, progress in jobs.items() if i in self._held
        ]
        if known:
            self._chores.add(self._scripts.progress(known))

    async def add_partial(self, claim: Claim, partial: PartialImage) -> None:
        with suppress(QueueUnavailable):
            await self._scripts.partial(_hold(claim), encode_partial(partial))

    async def complete(self, claim: Claim, result: JobResult) -> bool:
        content, hold = encode_result(result), _hold(claim)

        async def attempt() -> bool:
            if not await self._scripts.stage(hold, content):
                # Another worker's, or ended: by this very claim, if its reply got lost.
                return await self._scripts.complete(hold) == "duplicate"
            word = await self._scripts.complete(hold)
            if word == "unstaged":
                return await attempt()
            return word in ("done", "duplicate")

        is_ours = await self._until_settled(claim, attempt)
        state = "succeeded" if is_ours else "lost"
        log_job(claim.job.id, state, images=len(result.images), **asdict(result.timings))
        return is_ours

    async def fail(self, claim: Claim, error: str, *, is_retryable: bool = False) -> bool:

        async def attempt() -> bool:
            word = await self._scripts.fail(_hold(claim), error, is_retryable=is_retryable)
            return word != "stale"

        is_ours = await self._until_settled(claim, attempt)
        state = "failed" if is_ours else "lost"
        log_job(claim.job.id, state, error=error, may_be_tried_again=is_retryable)
        return is_ours

    async def _until_settled(
        self, claim: Claim, attempt: Callable[[], Coroutine[Any, Any, bool]]
    ) -> bool:
        """Return what `attempt` returns once the server has answered; until then the lease is
        renewed, so that the job stays ours, and whoever interrupts this hands the job back."""
        job_id = claim.job.id
        while self._held.get(job_id) == claim:
            try:
                is_ours = await attempt()
            except QueueUnavailable as error:
                logger.warning("not stored yet: %s", error, extra={"job": job_id})
                await asyncio.sleep(OUTAGE_PAUSE_S)
            else:
                self._let_go([_hold(claim)])
                return is_ours
        return False

    async def release(self) -> None:
        if self._claiming:
            with suppress(QueueUnavailable):
                await self._claiming
        held, self._held = self._held, {}
        if held:
            await self._scripts.release(self.name, [_hold(claim) for claim in held.values()])
            logger.info("%d jobs were handed back", len(held))

    async def report(self, status: WorkerStatus) -> None:
        is_news = self._status is None or self._status.phase != status.phase
        self._status = replace(status, name=self.name)
        if is_news:
            with suppress(QueueUnavailable):
                await self._send_heartbeat()

    async def _send_heartbeat(self) -> None:
        if self._status is not None:
            await self._reader.say(self._status)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._keeper.start()
        tasks = [
            asyncio.create_task(self._watch.listen(self._keys.control, self._on_control)),
            asyncio.create_task(each_interval(self._policy.reap_interval_s, self._scripts.reap)),
            asyncio.create_task(each_interval(HEARTBEAT_S, self._send_heartbeat)),
        ]
        try:
            yield
        finally:
            await end_tasks(tasks)
            with suppress(QueueUnavailable):
                await self.release()
                await self._reader.leave(self.name)
            self._keeper.stop()
            await self._chores.end()
            await self.disconnect()

    async def disconnect(self) -> None:
        """Close the connections; `running` does it at its end."""
        for client in (self._client, self._bell, self._subscriber):
            await client.aclose()
            await client.connection_pool.disconnect()

    def _holds(self) -> list[Hold]:
        return [_hold(claim) for claim in self._held.values()]

    def _on_lost(self, holds: list[Hold]) -> None:
        """Drop lost claims; the lease keeper calls this from its thread."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended, and the claims with it
            self._loop.call_soon_threadsafe(self._drop, holds)

    def _on_control(self, job_id: str) -> None:
        if claim := self._held.get(job_id):
            self._drop([_hold(claim)])

    def _drop(self, holds: list[Hold]) -> None:
        """Lose these claims, and let the worker know."""
        self._lost |= {i for i, claim in self._held.items() if _hold(claim) in holds}
        self._let_go(holds)

    def _let_go(self, holds: list[Hold]) -> None:
        """Hold these claims no longer; another claim of the same job stays."""
        self._held = {i: claim for i, claim in self._held.items() if _hold(claim) not in holds}


def _hold(claim: Claim) -> Hold:
    return claim.job.id, claim.token
