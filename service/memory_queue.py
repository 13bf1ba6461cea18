"""The queue in this process's memory: the default where one process does everything.

The same states and the same rules as on a Redis server, which the same tests check: attempts,
leases, quotas, dead letters. It is both ends, `JobQueue` and `WorkQueue`, of one worker. No method
suspends between reading and changing state, which is all the locking that one event loop needs.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from heapq import heappop, heappush, nlargest

from service.chores import each_interval, end_tasks
from service.jobs import (
    Claim,
    DeadLetter,
    IdempotencyKey,
    Job,
    JobOutcome,
    JobProgress,
    JobResult,
    JobState,
    JobView,
    KnownJob,
    PartialImage,
    QueueStats,
    WorkerStatus,
)
from service.logs import log_job
from service.memory_archive import Archive, IdempotencyKeys
from service.memory_book import Book
from service.memory_record import Record
from service.queue_policy import (
    QueuePolicy,
    backlog_s,
    id_mismatch,
    queue_full,
    quota_exceeded,
    throughput,
)

IDLE_S = 0.5  # after which an idle worker looks again: a delayed job may be due


class MemoryJobQueue:
    """A queue of jobs, by priority and age; each ends in exactly one terminal state."""

    def __init__(self, policy: QueuePolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self._clock = clock
        self._epoch = time.time() - clock()
        self._archive = Archive(policy, clock)
        self._book = Book(policy, clock, self._archive)
        self._deadlines: list[tuple[float, str]] = []  # a heap, of ended jobs too
        self._idempotency = IdempotencyKeys(policy.idempotency_ttl_s, clock)
        self._num_accepted = self._num_redelivered = 0
        self._workers: dict[str, WorkerStatus] = {}
        self._reaped_at = self._grace_until = float("-inf")

    # The API's side.

    async def admit(
        self,
        job: Job,
        *,
        idempotency: IdempotencyKey | None = None,
        is_awaited: bool = True,  # noqa: ARG002
    ) -> str:
        if idempotency and (known_id := self._idempotency.find(job.owner, idempotency)):
            first = self._book.find(known_id)
            # What failed through no fault of its own is asked for again, as its client was told.
            if first and not first.failed_retryably:
                return known_id
            job = job if first else replace(job, id=known_id)
        elif known := self._book.find(job.id):
            if (known.job.owner, known.job.fingerprint) != (job.owner, job.fingerprint):
                raise id_mismatch()
            return job.id
        self._check_bounds(job)
        if idempotency:
            self._idempotency.add(job.owner, idempotency, job.id)
        self._enter(job)
        log_job(job.id, "queued", images=len(job.images), cost=job.cost, priority=job.priority)
        return job.id

    def _check_bounds(self, job: Job) -> None:
        policy, workers = self.policy, self._workers.values()
        waiting, unfinished = self._book.cost_waiting, self._book.owned[job.owner]
        if waiting + job.cost > policy.max_queued_cost:
            raise queue_full(job, waiting, policy.max_queued_cost, workers)
        if unfinished >= (quota := policy.quota_of(job)):
            raise quota_exceeded(unfinished, quota, workers)

    def _enter(self, job: Job) -> None:
        now = self._clock()
        self._num_accepted += 1
        self._book.owned[job.owner] += 1
        record = Record(job, now, (now - job.lead_s, self._num_accepted))
        self._book.unfinished[job.id] = record
        heappush(self._deadlines, (record.expires_at, job.id))
        self._book.requeue(record)

    async def knows_key(self, owner: str, key: IdempotencyKey) -> bool:
        return self._idempotency.knows(owner, key)

    async def wait(self, job_id: str) -> JobOutcome:
        record = self._book.known(job_id)
        while record.outcome is None:
            await record.changed.wait()
        return record.outcome

    async def follow(self, job_id: str, version: int, timeout_s: float) -> JobView:
        record = self._book.known(job_id)
        if record.version == version and record.outcome is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(record.changed.wait(), timeout_s)
        return self._view(record)

    async def find(self, job_id: str, *, with_result: bool = True) -> KnownJob | None:
        record = self._book.find(job_id)
        return self._known(record, with_result=with_result) if record else None

    async def jobs_of(
        self,
        owner: str,
        *,
        state: JobState | None = None,
        before: tuple[float, str] | None = None,
        limit: int = 20,
    ) -> list[KnownJob]:
        newest = nlargest(self.policy.max_listed, self._book.jobs_of(owner), key=_listed_at)
        found = [
            record
            for record in newest
            if (state is None or record.state in state.meant)
            and (before is None or _listed_at(record) < before)
        ]
        return [self._known(record, with_result=False) for record in found[:limit]]

    async def cancel(self, job_id: str) -> JobState | None:
        return self._stop(job_id, JobState.CANCELLED)

    async def expire(self, job_id: str) -> JobState | None:
        return self._stop(job_id, JobState.EXPIRED)

    def _stop(self, job_id: str, target: JobState) -> JobState | None:
        record = self._book.find(job_id)
        if record is None or record.state.is_terminal:
            return None
        state = record.state
        self._book.end(record, JobOutcome(state=target))
        return state

    async def forget(self, job_id: str, *, keeps_result: bool = False) -> None:
        if not keeps_result:
            self._archive.answered(job_id)

    async def state(self, job_id: str) -> JobState | None:
        return record.state if (record := self._book.find(job_id)) else None

    async def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(self._workers.values())

    async def stats(self) -> QueueStats:
        waiting = [r for r in self._book.unfinished.values() if r.state is JobState.QUEUED]
        now = self._clock()
        oldest_at = min((record.admitted_at for record in waiting), default=now)
        return QueueStats(
            jobs_waiting=len(waiting),
            jobs_running=len(self._book.running),
            images_waiting=sum(len(record.job.images) for record in waiting),
            images_running=sum(len(record.job.images) for record in self._book.running.values()),
            cost_waiting=self._book.cost_waiting,
            max_queued_cost=self.policy.max_queued_cost,
            oldest_waiting_s=now - oldest_at,
            num_accepted=self._num_accepted,
            num_ended={s: self._book.num_ended[s] for s in JobState if s.is_terminal},
            workers=tuple(self._workers.values()),
            num_redelivered=self._num_redelivered,
            num_dead_letters=len(self._archive.dead_letters()),
        )

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return [
            DeadLetter(
                id=record.job.id,
                died_at=self._wall_s(record.ended_at),
                crashes=record.crashes,
                error=(record.outcome and record.outcome.error) or "",
                owner=record.job.owner,
                job=record.job,
            )
            for record in self._archive.dead_letters()[::-1][:limit]
        ]

    async def retry_dead(self, job_id: str, new_id: str) -> str | None:
        record = self._archive.find(job_id)
        if record is None or record.state is not JobState.DEAD:
            return None
        if record.retried_as is None:
            record.retried_as = new_id
            self._enter(replace(record.job, id=new_id))
        return record.retried_as

    # The worker's side.

    async def wait_ready(self) -> bool:
        return await self._book.has_rung(IDLE_S)

    async def pass_on(self) -> None:
        pass  # there is no other worker

    async def claim(self, limit: int, *, has_news: bool = True) -> list[Claim]:  # noqa: ARG002
        self._reap()
        claims: list[Claim] = []
        num_images = 0
        order = self._book.ready
        if self._is_solo_next():
            order, limit = self._book.solo, 0 if self._book.running else min(limit, 1)
        while len(order) and num_images < limit:
            record = order.first()
            if self._clock() >= record.expires_at:
                self._book.end(record, JobOutcome(state=JobState.EXPIRED))
                continue
            claims.append(self._claim(record))
            num_images += len(record.job.images)
        if len(self._book.ready) or len(self._book.solo):
            self._book.bell.set()
        return claims

    def _is_solo_next(self) -> bool:
        """Whether this worker claims nothing else until it has run a job alone."""
        runs_solo = any(self._book.is_suspect(record) for record in self._book.running.values())
        return runs_solo or len(self._book.solo) > 0

    def _claim(self, record: Record) -> Claim:
        now = self._clock()
        self._book.leave(record)
        record.state, record.token = JobState.RUNNING, secrets.token_hex(8)
        record.started_at, record.leased_until = now, now + self.policy.lease_s
        record.attempts += 1
        self._book.running[record.job.id] = record
        record.touch()
        queue_s = now - record.admitted_at
        log_job(record.job.id, "running", attempt=record.attempts, queue_s=queue_s)
        return Claim(
            job=record.job,
            queue_s=queue_s,
            token=record.token,
            is_solo=self._book.is_suspect(record),
            attempt=record.attempts,
        )

    async def revoked(self, job_ids: Iterable[str]) -> list[str]:
        now = self._clock()
        revoked = []
        for job_id in job_ids:
            record = self._book.running.get(job_id)
            if record is not None and now >= record.expires_at:
                self._book.end(record, JobOutcome(state=JobState.EXPIRED))
                record = None
            if record is None:
                revoked.append(job_id)
            else:
                record.leased_until = now + self.policy.lease_s
        return revoked

    async def progress(self, jobs: Mapping[str, JobProgress]) -> None:
        for job_id, progress in jobs.items():
            if record := self._book.running.get(job_id):
                record.progress = progress
                record.touch()

    async def add_partial(self, claim: Claim, partial: PartialImage) -> None:
        if record := self._book.held(claim):
            record.partials.append(partial)
            record.touch()

    async def complete(self, claim: Claim, result: JobResult) -> bool:
        record = self._book.held(claim)
        outcome = JobOutcome(state=JobState.SUCCEEDED, result=result)
        return record is not None and self._book.end(record, outcome)

    async def fail(self, claim: Claim, error: str, *, is_retryable: bool = False) -> bool:
        record = self._book.held(claim)
        if record is None:
            return False
        policy = self.policy
        if is_retryable and record.attempts < policy.max_attempts:
            self._book.leave(record)
            wait_s = min(policy.backoff_s * 2 ** (record.attempts - 1), policy.max_backoff_s)
            record.delayed_until = self._clock() + wait_s
            self._book.requeue(record)
            return True
        outcome = JobOutcome(state=JobState.FAILED, error=error, is_retryable=is_retryable)
        return self._book.end(record, outcome)

    async def release(self) -> None:
        for record in list(self._book.running.values()):
            self._book.leave(record)
            record.attempts -= 1
            self._book.requeue(record)

    async def report(self, status: WorkerStatus) -> None:
        self._workers[status.name] = status

    # The process.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each_interval(self.policy.reap_interval_s, self.reap))]
        try:
            yield
        finally:
            await end_tasks(tasks)

    async def close(self) -> None:
        for record in list(self._book.unfinished.values()):
            self._book.end(record, JobOutcome(state=JobState.CANCELLED))

    async def reap(self) -> None:
        """Do what time alone does: expire, take up delayed jobs, take back leases, forget."""
        self._reap()
        self._archive.tidy()
        self._idempotency.tidy()

    def _reap(self) -> None:
        now, policy = self._clock(), self.policy
        if now - self._reaped_at > 2 * policy.reap_interval_s:  # nobody was there to renew either
            self._grace_until = now + policy.lease_s
        self._reaped_at = now
        while self._deadlines and now >= self._deadlines[0][0]:
            _, job_id = heappop(self._deadlines)
            if record := self._book.unfinished.get(job_id):
                self._book.end(record, JobOutcome(state=JobState.EXPIRED))
        for record in self._book.delayed.records():
            if record.delayed_until is not None and now >= record.delayed_until:
                self._book.leave(record)
                record.delayed_until = None
                self._book.requeue(record)
        if now >= self._grace_until:
            for record in [r for r in self._book.running.values() if now >= r.leased_until]:
                self._lose(record)

    def _lose(self, record: Record) -> None:
        """Take a job back from a worker that was lost, which was no attempt of the job's."""
        record.crashes += 1
        record.attempts -= 1
        self._num_redelivered += 1
        if record.crashes >= self.policy.max_crashes:
            error = "every worker that ran it was lost"
            self._book.end(record, JobOutcome(state=JobState.DEAD, error=error))
            return
        self._book.leave(record)
        self._book.requeue(record)
        log_job(record.job.id, "queued", reason="its worker was lost")

    def _wall_s(self, at: float) -> float:
        """Return a time of this queue's clock as seconds since 1970."""
        return self._epoch + at

    def _known(self, record: Record, *, with_result: bool) -> KnownJob:
        view, started_at = self._view(record), record.started_at
        if not with_result:
            outcome = view.outcome and replace(view.outcome, result=None)
            view = replace(view, partials=(), outcome=outcome)
        return KnownJob(
            job=record.job,
            view=view,
            started_at=None if started_at is None else self._wall_s(started_at),
            ended_at=self._wall_s(record.ended_at) if record.outcome else None,
        )

    def _view(self, record: Record) -> JobView:
        is_queued, is_ready = record.state is JobState.QUEUED, record.job.id in self._book.ready
        return JobView(
            version=record.version,
            state=record.state,
            share=record.progress.share,
            eta_s=self._time_until_done_s(record) if is_queued else record.progress.eta_s,
            queue_position=1 + self._book.ready.index(record) if is_ready else None,
            partials=tuple(record.partials),
            outcome=record.outcome,
        )

    def _time_until_done_s(self, record: Record) -> float | None:
        """Estimate the time left of a job that waits; None before any step was measured."""
        workers = self._workers.values()
        ahead_s = backlog_s(workers, self._book.ready.cost_before(record))
        if ahead_s is None:
            return None
        step_s = max(worker.step_s for worker in workers)
        return ahead_s + max(record.job.num_steps * step_s, record.job.cost / throughput(workers))


def _listed_at(record: Record) -> tuple[float, str]:
    return record.job.created_at, record.job.id
