"""The verbs between API, queue and worker: what any queue of jobs can do.

Two implementations, checked by the same tests: `MemoryJobQueue`, for one process that does
everything, and on a Redis server `RedisJobQueue` and `RedisWorkQueue`, the two ends of a queue that
any number of processes share. Jobs are claimed in the order in which they came, those of a higher
priority as though they had come earlier: whoever waits long enough is the first.

Execution is at least once, and the visible result exactly one: a claim is a lease, and only the
claim that holds the job ends it. All verbs but the waiting ones return soon; where the queue is a
server that is away they raise QueueUnavailable.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

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


class JobQueue(Protocol):
    """The API's end."""

    async def admit(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, is_awaited: bool = True
    ) -> str:
        """Queue `job`, unless it or its idempotency key is known; return the id of the job that
        answers the request. A key outlives the record of its job: then `job` takes its id.
        An awaited job survives the loss of the server's data; any other ends at its deadline
        without anybody who waits for it.

        Raises: QueueFull beyond the bound on queued cost, QuotaExceeded beyond the owner's number
        of unfinished jobs, both with the time after which there should be room;
        IdempotencyMismatch if the key, or the job's id, stands for another request: one with
        another fingerprint or of another owner.
        """

    async def knows_key(self, owner: str, key: IdempotencyKey) -> bool:
        """Say whether `owner` has used the key here, for this request or another."""

    async def wait(self, job_id: str) -> JobOutcome:
        """Return the outcome of `job_id` once it has one.

        Raises: KeyError if the queue does not know the job.
        """

    async def follow(self, job_id: str, version: int, timeout_s: float) -> JobView:
        """Return how `job_id` is, once that is not `version` any more or `timeout_s` has passed.

        Raises: KeyError if the queue does not know the job.
        """

    async def find(self, job_id: str, *, with_result: bool = True) -> KnownJob | None:
        """Return what is known of `job_id`, whoever admitted it, None if there is no record of
        it (any more). A record outlives its result. Without `with_result` neither images nor
        previews are fetched.

        Raises: GenerationFailed if the record cannot be read.
        """

    async def jobs_of(
        self,
        owner: str,
        *,
        state: JobState | None = None,
        before: tuple[float, str] | None = None,
        limit: int = 20,
    ) -> list[KnownJob]:
        """Return the jobs of `owner` of which there is a record, the newest first, without images
        and previews. `before` is the `created_at` and the id of the last one seen. To its client a
        dead job is a failed one: FAILED finds it too."""

    async def cancel(self, job_id: str) -> JobState | None:
        """Stop `job_id` for good: nobody wants it. Return the state that it was stopped in, None
        if it had ended or is not known."""

    async def expire(self, job_id: str) -> JobState | None:
        """Stop `job_id`, whose time is up. Return as `cancel` does."""

    async def forget(self, job_id: str, *, keeps_result: bool = False) -> None:
        """Let nobody in this process wait for a job any longer; its client was answered, or left.
        An ended one is kept only as long as a repeated request needs, unless `keeps_result`."""

    async def state(self, job_id: str) -> JobState | None:
        """Return the state of `job_id`, None if the queue does not know it (any more)."""

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Return what each live worker last said of itself."""

    async def stats(self) -> QueueStats:
        """Return what waits, what runs, what ended, and what the workers last said."""

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the jobs that were given up, the newest first."""

    async def retry_dead(self, job_id: str, new_id: str) -> str | None:
        """Admit a dead job anew as `new_id`: terminal states are never left. Return its new id,
        None if it is no dead letter."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Do the queue's own work meanwhile: reap, listen, look."""

    async def close(self) -> None:
        """Let nobody wait in this process any longer: it ends."""


class WorkQueue(Protocol):
    """A worker's end."""

    async def wait_ready(self) -> bool:
        """Return True when a job may be waiting to be claimed, False after a moment without."""

    async def pass_on(self) -> None:
        """Let another worker know what `wait_ready` told this one, which has no room."""

    async def claim(self, limit: int, *, has_news: bool = True) -> list[Claim]:
        """Take the first waiting jobs until they hold `limit` images; only the last may go beyond
        it. What is late expires instead. Jobs that lost workers before come alone. Without
        `has_news` nothing is asked that costs; what was asked before is taken up."""

    async def revoked(self, job_ids: Iterable[str]) -> list[str]:
        """Return those of a worker's jobs that it must drop: cancelled, late or lost. To ask is to
        live: the leases of the others are renewed as long as it is done."""

    async def progress(self, jobs: Mapping[str, JobProgress]) -> None:
        """Note how far running jobs are; jobs that do not run are left as they are."""

    async def add_partial(self, claim: Claim, partial: PartialImage) -> None:
        """Show a part of an image to the job's client, unless the job has ended."""

    async def complete(self, claim: Claim, result: JobResult) -> bool:
        """End the job with `result`; False if it has ended otherwise, and the result is void."""

    async def fail(self, claim: Claim, error: str, *, is_retryable: bool = False) -> bool:
        """End the job as failed because of `error`, or try it again later if that may help and
        attempts are left; False if it has ended otherwise."""

    async def release(self) -> None:
        """Hand back every claim that has not ended, as though it had never been made."""

    async def report(self, status: WorkerStatus) -> None:
        """Record what a worker says of itself."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Do the queue's own work meanwhile: renew, reap, listen, give signs of life."""
