"""The numbers that every implementation of the queue obeys, and the estimates that follow.

Bounds are exact: the queue counts what waits as images x steps, an owner's unfinished jobs one by
one. A lease is what a worker holds a job by; whoever does not renew it in time is lost, and its job
runs again. What a *worker's* death costs a job is counted apart from the job's own failures: it is
suspected only when it was there repeatedly, and then runs alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from service.errors import IdempotencyMismatch, QueueFull, QuotaExceeded
from service.jobs import Job, WorkerStatus

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class QueuePolicy:
    """Bounds, leases, patience, memory."""

    max_queued_cost: int  # images x steps of what waits
    max_owner_jobs: int = 10000  # unfinished ones of one owner
    lease_s: float = 10.0  # renewed at a third of it
    reap_interval_s: float = 1.0  # when twice as long passed without, there was an outage
    max_attempts: int = 3  # of a job that fails retryably
    solo_from_crashes: int = 2  # lost workers, from which on it runs alone
    max_crashes: int = 6  # at which it is given up
    backoff_s: float = 0.5  # before the second attempt; doubled for each further one
    max_backoff_s: float = 10.0
    result_ttl_s: float = 900.0
    record_ttl_s: float = 86400.0  # of an ended job: what it was, and how it ended
    answered_ttl_s: float = 60.0  # of both, once a client that waited has its answer
    max_records: int = 50000  # of ended jobs
    max_listed: int = 10000  # of an owner's jobs, the newest
    staged_ttl_s: float = 120.0
    dead_ttl_s: float = 7 * 86400.0
    max_dead: int = 1000
    idempotency_ttl_s: float = 86400.0

    def quota_of(self, job: Job) -> int:
        """Return how many unfinished jobs the owner of `job` may have."""
        return job.owner_quota or self.max_owner_jobs


def throughput(workers: Iterable[WorkerStatus]) -> float:
    """Return the image-steps a second of all workers; 0 before any step was measured."""
    return sum(w.num_slots / w.step_s for w in workers if w.step_s)


def backlog_s(workers: Iterable[WorkerStatus], queued_cost: float) -> float | None:
    """Return the seconds until what runs and `queued_cost` are done; None before any step."""
    workers = list(workers)
    rate = throughput(workers)
    return (sum(w.steps_left for w in workers) + queued_cost) / rate if rate else None


def retry_after_s(workers: Iterable[WorkerStatus], queued_cost: float) -> float:
    """Return when to come again: when what waits now should be done, within bounds."""
    return min(max(backlog_s(workers, queued_cost) or 0.0, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def queue_full(job: Job, waiting: int, most: int, workers: Iterable[WorkerStatus]) -> QueueFull:
    """Return the refusal of `job` by a queue in which `waiting` of `most` image-steps wait."""
    return QueueFull(
        f"the queue is full: {waiting} of {most} image-steps are waiting and this request needs "
        f"{job.cost}; try again later",
        retry_after_s=retry_after_s(workers, waiting),
    )


def quota_exceeded(open_jobs: int, most: int, workers: Iterable[WorkerStatus]) -> QuotaExceeded:
    """Return the refusal of a job whose owner has `open_jobs` of `most`."""
    return QuotaExceeded(
        f"{open_jobs} jobs of this caller have not ended, and {most} may be open at once; "
        "wait for some",
        retry_after_s=retry_after_s(workers, 0),
    )


def key_mismatch() -> IdempotencyMismatch:
    """Return the refusal of a request under another one's idempotency key."""
    return IdempotencyMismatch("the idempotency key was used for another request")


def id_mismatch() -> IdempotencyMismatch:
    """Return the refusal of a request under another one's id."""
    return IdempotencyMismatch("the id was used for another request; choose a new one")
