"""The queue on a Redis server: any number of APIs and workers, and nothing is lost between them.

The API's end, with the verbs of `JobQueue`; a worker's is in `redis_work.py`. State lives on the
server and changes in scripts only (lua/); here is what a process adds: waiting, being woken,
carrying on while the server is away. An API that still waits for a job that the server has lost
submits it again under the same id: its seeds are fixed, so the images are the same.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from service.chores import Chores, each_interval, end_tasks
from service.errors import GenerationFailed, QueueUnavailable
from service.jobs import (
    DeadLetter,
    IdempotencyKey,
    Job,
    JobOutcome,
    JobState,
    JobView,
    KnownJob,
    QueueStats,
    WorkerStatus,
)
from service.logs import log_job
from service.payloads import PayloadError
from service.queue_keys import Keys
from service.queue_policy import (
    QueuePolicy,
    id_mismatch,
    key_mismatch,
    queue_full,
    quota_exceeded,
)
from service.redis_client import connect
from service.redis_reader import RedisReader
from service.redis_scripts import QueueScripts
from service.redis_watch import RECONCILE_S, RedisWatch
from service.stored_job import known_jobs

logger = logging.getLogger("bar.queue")

OUTAGE_PAUSE_S = 0.5
LATE_S = 10.0  # after its deadline nobody awaits a job


@dataclass(frozen=True)
class _Awaited:
    job: Job
    admitted_at: float
    is_ours: bool  # nobody else's, and not asked for again: nobody wants it when we end

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.admitted_at


class RedisJobQueue:
    """An API process's end of the queue named `queue` on the server at `url`.

    `name` tells processes apart; `clock` replaces the server's.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        policy: QueuePolicy,
        *,
        name: str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.policy, self.name = policy, name
        self._keys = Keys(queue)
        self._client, self._subscriber = connect(url), connect(url)
        self._scripts = QueueScripts(self._client, self._keys, policy, clock=clock)
        self._reader = RedisReader(self._client, self._keys)
        self._watch = RedisWatch(self._client, self._subscriber, self._keys)
        self._awaited: dict[str, _Awaited] = {}
        self._workers: tuple[WorkerStatus, ...] = ()
        self._workers_at = -RECONCILE_S
        self._is_closed = False
        self._chores = Chores()

    async def admit(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, is_awaited: bool = True
    ) -> str:
        word, detail = await self._scripts.admit(
            job, api=self.name, is_forced=False, idempotency=idempotency
        )
        if word in ("full", "quota"):
            await self._refuse(word, int(detail), job)
        if word == "conflict":
            raise key_mismatch() if detail == "key" else id_mismatch()
        if word == "admitted":
            log_job(detail, "queued", images=len(job.images), cost=job.cost, priority=job.priority)
        if is_awaited:
            self._awaited[detail] = _Awaited(
                replace(job, id=detail),
                time.monotonic(),
                is_ours=word != "attached" and idempotency is None and not job.fingerprint,
            )
        return detail

    async def _refuse(self, word: str, number: int, job: Job) -> None:
        workers, policy = await self.workers(), self.policy
        if word == "quota":
            raise quota_exceeded(number, policy.quota_of(job), workers)
        raise queue_full(job, number, policy.max_queued_cost, workers)

    async def knows_key(self, owner: str, key: IdempotencyKey) -> bool:
        return await self._reader.knows_key(owner, key.key_hash)

    async def wait(self, job_id: str) -> JobOutcome:
        while True:
            view = await self._changed(job_id, None, None)
            if view.outcome:
                return view.outcome

    async def follow(self, job_id: str, version: int, timeout_s: float) -> JobView:
        return await self._changed(job_id, version, timeout_s)

    async def _changed(self, job_id: str, version: int | None, timeout_s: float | None) -> JobView:
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        with self._watch.watching(job_id) as signal:
            if job_id not in self._awaited and timeout_s != 0:
                await self._scripts.follow(job_id, self.name)
            while True:
                view = await self._view(job_id)
                if view and (view.outcome or (version is not None and view.version != version)):
                    return view
                left_s = OUTAGE_PAUSE_S if view is None else None
                if ends_at is not None:
                    left_s = ends_at - time.monotonic()
                    if view and left_s <= 0:
                        return view
                with suppress(TimeoutError):
                    await asyncio.wait_for(signal.wait(), left_s)
                signal.clear()

    async def _view(self, job_id: str) -> JobView | None:
        """Return how the job is; None while the server is away. A lost job is submitted again."""
        awaited = self._awaited.get(job_id)
        if self._is_closed:
            return _closed_view()
        try:
            view = await self._reader.view(job_id, self._workers)
            if view is None and awaited:
                await self._submit_again(awaited)
                view = await self._reader.view(job_id, self._workers)
        except QueueUnavailable:
            if awaited:
                return None
            raise
        if view is None:
            raise KeyError(job_id)
        return view

    async def _submit_again(self, awaited: _Awaited) -> None:
        job = awaited.job
        logger.warning("the queue's server has lost a job; submitted again", extra={"job": job.id})
        left = replace(job, timeout_s=max(job.timeout_s - awaited.age_s, 0.001))
        await self._scripts.admit(left, api=self.name, is_forced=True, idempotency=None)

    async def find(self, job_id: str, *, with_result: bool = True) -> KnownJob | None:
        try:
            return await self._reader.find(job_id, self._workers, with_result=with_result)
        except PayloadError as error:
            logger.error("a job cannot be read: %s", error, extra={"job": job_id})  # noqa: TRY400
            raise GenerationFailed("what is stored of these images is damaged") from None

    async def jobs_of(
        self,
        owner: str,
        *,
        state: JobState | None = None,
        before: tuple[float, str] | None = None,
        limit: int = 20,
    ) -> list[KnownJob]:
        found: list[KnownJob] = []
        states, is_all = state.meant if state else (), limit <= 0
        while not is_all:
            page = await self._scripts.jobs_of(owner, states, before, limit - len(found))
            found += known_jobs(page.jobs, self._workers)
            before, is_all = page.rest, page.rest is None or len(found) == limit
        return found

    async def cancel(self, job_id: str) -> JobState | None:
        return await self._stop(job_id, JobState.CANCELLED)

    async def expire(self, job_id: str) -> JobState | None:
        return await self._stop(job_id, JobState.EXPIRED)

    async def _stop(self, job_id: str, target: JobState) -> JobState | None:
        if target is JobState.CANCELLED:
            self._awaited.pop(job_id, None)
        state = await self._scripts.cancel(job_id, target)
        self._watch.notify(job_id)
        if state is None or state.is_terminal:
            return None
        log_job(job_id, target, was=state)
        return state

    async def forget(self, job_id: str, *, keeps_result: bool = False) -> None:
        self._awaited.pop(job_id, None)
        if not keeps_result:
            self._chores.add(self._scripts.forget(job_id))

    async def state(self, job_id: str) -> JobState | None:
        return await self._reader.state(job_id)

    async def workers(self) -> tuple[WorkerStatus, ...]:
        if time.monotonic() - self._workers_at > RECONCILE_S:
            self._workers = await self._reader.workers()
            self._workers_at = time.monotonic()
        return self._workers

    async def stats(self) -> QueueStats:
        ((waiting, running, dead, oldest_s), counters), memory = await asyncio.gather(
            self._scripts.stats(), self._reader.memory_bytes()
        )

        def number(name: str) -> int:
            return int(counters.get(name, 0))

        return QueueStats(
            jobs_waiting=int(waiting),
            jobs_running=int(running),
            images_waiting=number("queued_images"),
            images_running=number("running_images"),
            cost_waiting=number("queued_cost"),
            max_queued_cost=self.policy.max_queued_cost,
            oldest_waiting_s=oldest_s,
            num_accepted=number("accepted"),
            num_ended={s: number(f"ended:{s}") for s in JobState if s.is_terminal},
            workers=await self.workers(),
            num_redelivered=number("redelivered"),
            num_dead_letters=int(dead),
            server_memory_bytes=memory,
        )

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return await self._reader.dead_letters(limit)

    async def retry_dead(self, job_id: str, new_id: str) -> str | None:
        return await self._scripts.retry(job_id, new_id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._watch.listen(self._keys.events(self.name), self._on_event)),
            asyncio.create_task(each_interval(self.policy.reap_interval_s, self._scripts.reap)),
            asyncio.create_task(each_interval(RECONCILE_S, self._reconcile)),
        ]
        try:
            yield
        finally:
            await end_tasks(tasks)
            await self._chores.end()
            await self.disconnect()

    async def disconnect(self) -> None:
        """Close the connections; `running` does it at its end."""
        for client in (self._client, self._subscriber):
            await client.aclose()
            await client.connection_pool.disconnect()

    async def _reconcile(self) -> None:
        await self._watch.reconcile()
        await self.workers()  # which every view's time left is estimated from
        for job_id, awaited in list(self._awaited.items()):
            if awaited.age_s > awaited.job.timeout_s + LATE_S:  # it has ended: nobody said so
                del self._awaited[job_id]

    def _on_event(self, message: str) -> None:
        self._watch.notify(message.partition(" ")[0])

    async def close(self) -> None:
        """Answer whoever waits here that nothing will come, and stop what nobody then wants."""
        self._is_closed = True
        for job_id, awaited in self._awaited.items():
            if awaited.is_ours:
                self._chores.add(self._scripts.cancel(job_id, JobState.CANCELLED))
        self._watch.notify_all()


def _closed_view() -> JobView:
    return JobView(
        version=-1, state=JobState.CANCELLED, share=0.0, eta_s=None, queue_position=None,
        partials=(), outcome=JobOutcome(state=JobState.CANCELLED),
    )  # fmt: skip
