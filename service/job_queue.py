"""The bounded queue between API and worker, in memory: the default for one process.

The API admits, waits and cancels; the worker claims, completes and fails. Every method is a
coroutine, although none here has to wait for I/O, and the worker asks which of its jobs were
revoked instead of being called back: the same verbs hold when the queue is a server elsewhere.
No method suspends between reading and changing state, which is all the locking that one event
loop needs.

Jobs are claimed in the order in which they came, those of a higher priority as though they had
come earlier: whoever waits long enough is the first. States are those of `JobState`; the bound is
on queued *cost* (images x steps), because a request for sixteen large images is not the size of one
for a digit.
"""

import asyncio
import logging
import time
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from service.errors import QueueFull
from service.jobs import (
    Claim,
    Job,
    JobOutcome,
    JobProgress,
    JobResult,
    JobState,
    JobView,
    PartialImage,
    QueueStats,
    WorkerStatus,
)

logger = logging.getLogger("bar.queue")

NUM_REMEMBERED = 1000  # ended jobs whose state can still be asked for
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0

NO_PROGRESS = JobProgress(share=0.0, eta_s=None)


@dataclass
class _Record:
    job: Job
    admitted_at: float
    place: tuple[float, int]  # in the order of claims
    outcome: asyncio.Future[JobOutcome]
    state: JobState = JobState.QUEUED
    progress: JobProgress = NO_PROGRESS
    partials: list[PartialImage] = field(default_factory=list)
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expires_at(self) -> float:
        return self.admitted_at + self.job.timeout_s

    def touch(self) -> None:
        """Let those who follow the job look at it again."""
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryJobQueue:
    """A queue of jobs, by priority and age; each ends in exactly one terminal state."""

    def __init__(
        self, *, max_queued_cost: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_queued_cost = max_queued_cost
        self._clock = clock
        self._ready: dict[str, _Record] = {}
        self._order: list[tuple[tuple[float, int], str]] = []  # of what is ready
        self._running: dict[str, _Record] = {}
        self._ended: OrderedDict[str, _Record] = OrderedDict()
        self._num_ended: Counter[JobState] = Counter()
        self._num_accepted = 0
        self._cost_waiting = 0
        self._bell = asyncio.Event()
        self._workers: dict[str, WorkerStatus] = {}

    # The API's side.

    async def admit(self, job: Job) -> None:
        """Queue `job`; a job that is known already is left as it is.

        Raises: QueueFull, with the time after which there should be room, beyond the bound.
        """
        if self._find(job.id):
            return
        if self._cost_waiting + job.cost > self.max_queued_cost:
            raise QueueFull(
                f"the queue is full: {self._cost_waiting} of {self.max_queued_cost} image-steps "
                f"are waiting and this request needs {job.cost}; try again later",
                retry_after_s=self._backlog_s(),
            )
        future, now = asyncio.get_running_loop().create_future(), self._clock()
        record = _Record(job, now, (now - job.lead_s, self._num_accepted), future)
        self._ready[job.id] = record
        insort(self._order, (record.place, job.id))
        self._cost_waiting += job.cost
        self._num_accepted += 1
        self._bell.set()
        logger.info(
            "job queued", extra={"job": job.id, "images": len(job.images), "cost": job.cost}
        )

    async def wait(self, job_id: str) -> JobOutcome:
        """Return the outcome of `job_id` once it has one, and forget the job.

        Raises: KeyError if the queue does not know the job.
        """
        record = self._find(job_id)
        if record is None:
            raise KeyError(job_id)
        outcome = await asyncio.shield(record.outcome)
        self._ended.pop(job_id, None)
        return outcome

    async def follow(self, job_id: str, version: int, timeout_s: float) -> JobView:
        """Return how `job_id` is, once that is not `version` any more or `timeout_s` has passed.

        Raises: KeyError if the queue does not know the job.
        """
        record = self._find(job_id)
        if record is None:
            raise KeyError(job_id)
        if record.version == version:
            with suppress(TimeoutError):
                await asyncio.wait_for(record.changed.wait(), timeout_s)
        return self._view(record)

    async def cancel(self, job_id: str) -> JobState | None:
        """Stop `job_id` for good and drop its result: nobody wants it. Return the state that it
        was in, None if the queue does not know it."""
        record = self._find(job_id)
        if record is None:
            return None
        state = record.state
        self._end(record, JobOutcome(state=JobState.CANCELLED))
        self._ended.pop(job_id, None)
        return state

    async def expire(self, job_id: str) -> JobState | None:
        """Stop `job_id`, whose time is up, unless it has ended. Return the state that it was in,
        None if the queue does not know it."""
        record = self._find(job_id)
        if record is None:
            return None
        state = record.state
        self._end(record, JobOutcome(state=JobState.EXPIRED))
        return state

    async def state(self, job_id: str) -> JobState | None:
        """Return the state of `job_id`, None if the queue does not know it (any more)."""
        record = self._find(job_id)
        return record.state if record else None

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Return what each worker last said of itself."""
        return tuple(self._workers.values())

    async def stats(self) -> QueueStats:
        """Return what waits, what runs, what ended, and what the workers last said."""
        waiting = [record.job for record in self._ready.values()]
        running = [record.job for record in self._running.values()]
        oldest = next(iter(self._ready.values()), None)
        return QueueStats(
            jobs_waiting=len(waiting),
            jobs_running=len(running),
            images_waiting=sum(len(job.images) for job in waiting),
            images_running=sum(len(job.images) for job in running),
            cost_waiting=self._cost_waiting,
            max_queued_cost=self.max_queued_cost,
            oldest_waiting_s=self._clock() - oldest.admitted_at if oldest else 0.0,
            num_accepted=self._num_accepted,
            num_ended={s: self._num_ended[s] for s in JobState if s.is_terminal},
            workers=tuple(self._workers.values()),
        )

    # The worker's side.

    async def wait_ready(self) -> None:
        """Return when a job may be waiting to be claimed."""
        await self._bell.wait()

    async def claim(self, limit: int) -> list[Claim]:
        """Take the first waiting jobs until they hold `limit` images; only the last may go
        beyond it. What is late expires instead. Never blocks."""
        claims: list[Claim] = []
        num_images = 0
        while self._order and num_images < limit:
            record = self._ready[self._order[0][1]]
            now = self._clock()
            if now >= record.expires_at:
                self._end(record, JobOutcome(state=JobState.EXPIRED))
                continue
            self._leave_ready(record)
            record.state = JobState.RUNNING
            self._running[record.job.id] = record
            record.touch()
            claims.append(Claim(job=record.job, queue_s=now - record.admitted_at))
            num_images += len(record.job.images)
            logger.info("job running", extra={"job": record.job.id})
        return claims

    async def revoked(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of a worker's jobs that it must drop: cancelled, late or unknown."""
        now = self._clock()
        for job_id in job_ids:
            record = self._running.get(job_id)
            if record is not None and now >= record.expires_at:
                self._end(record, JobOutcome(state=JobState.EXPIRED))
        return [job_id for job_id in job_ids if job_id not in self._running]

    async def progress(self, jobs: Mapping[str, JobProgress]) -> None:
        """Note how far running jobs are; jobs that do not run are left as they are."""
        for job_id, progress in jobs.items():
            if record := self._running.get(job_id):
                record.progress = progress
                record.touch()

    async def add_partial(self, claim: Claim, partial: PartialImage) -> None:
        """Show a part of an image to the job's client, unless the job has ended."""
        if record := self._running.get(claim.job.id):
            record.partials.append(partial)
            record.touch()

    async def complete(self, claim: Claim, result: JobResult) -> bool:
        """End the job with `result`; False if it has ended otherwise, and the result is void."""
        outcome = JobOutcome(state=JobState.SUCCEEDED, result=result)
        return self._end_running(claim.job.id, outcome)

    async def fail(self, claim: Claim, error: str, *, is_retryable: bool = False) -> bool:
        """End the job as failed because of `error`; False if it has ended otherwise.

        A retryable failure is the worker's: there is no other here, so the client is told.
        """
        outcome = JobOutcome(state=JobState.FAILED, error=error, is_retryable=is_retryable)
        return self._end_running(claim.job.id, outcome)

    async def report(self, status: WorkerStatus) -> None:
        """Record what a worker says of itself."""
        self._workers[status.name] = status

    # The process.

    async def close(self) -> None:
        """Cancel every job that has not ended, so that nobody waits for it any longer."""
        for record in [*self._ready.values(), *self._running.values()]:
            self._end(record, JobOutcome(state=JobState.CANCELLED))

    def _find(self, job_id: str) -> _Record | None:
        return self._ready.get(job_id) or self._running.get(job_id) or self._ended.get(job_id)

    def _leave_ready(self, record: _Record) -> None:
        del self._ready[record.job.id]
        del self._order[self._index(record)]
        self._cost_waiting -= record.job.cost
        if not self._ready:
            self._bell.clear()

    def _end_running(self, job_id: str, outcome: JobOutcome) -> bool:
        record = self._running.get(job_id)
        return record is not None and self._end(record, outcome)

    def _end(self, record: _Record, outcome: JobOutcome) -> bool:
        """Enter the terminal state of `outcome`; the only way into one."""
        if record.state.is_terminal:
            return False
        if record.state is JobState.QUEUED:
            self._leave_ready(record)
        else:
            del self._running[record.job.id]
        record.state = outcome.state
        record.outcome.set_result(outcome)
        self._num_ended[outcome.state] += 1
        record.touch()
        self._ended[record.job.id] = record
        if len(self._ended) > NUM_REMEMBERED:
            self._ended.popitem(last=False)
        age_s = round(self._clock() - record.admitted_at, 4)
        logger.info("job %s", outcome.state, extra={"job": record.job.id, "age_s": age_s})
        return True

    def _index(self, record: _Record) -> int:
        """Return how many jobs are claimed before `record`, which is ready."""
        return bisect_left(self._order, (record.place, record.job.id))

    def _view(self, record: _Record) -> JobView:
        is_queued = record.state is JobState.QUEUED
        return JobView(
            version=record.version,
            state=record.state,
            share=record.progress.share,
            eta_s=self._time_until_done_s(record) if is_queued else record.progress.eta_s,
            queue_position=1 + self._index(record) if is_queued else None,
            partials=tuple(record.partials),
            outcome=record.outcome.result() if record.outcome.done() else None,
        )

    def _time_until_done_s(self, record: _Record) -> float | None:
        """Estimate the time left of a job that waits; None before any step was measured."""
        rate = self._rate()
        if not rate:
            return None
        ahead = self._order[: self._index(record)]
        cost = sum(self._ready[job_id].job.cost for _, job_id in ahead)
        step_s = max(worker.step_s for worker in self._workers.values())
        own_s = max(record.job.num_steps * step_s, record.job.cost / rate)
        return (self._steps_left() + cost) / rate + own_s

    def _backlog_s(self) -> float:
        """Seconds until what waits now should be done, from the measured step time."""
        rate = self._rate()
        backlog_s = (self._steps_left() + self._cost_waiting) / rate if rate else 0.0
        return min(max(backlog_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)

    def _rate(self) -> float:
        """Image-steps a second of all workers; 0 before any step was measured."""
        return sum(w.num_slots / w.step_s for w in self._workers.values() if w.step_s)

    def _steps_left(self) -> int:
        return sum(worker.steps_left for worker in self._workers.values())
