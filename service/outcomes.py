"""What the end of a job means for those who asked for it: its result, or the error to tell them."""

from service.errors import (
    DeadlineExceeded,
    GenerationFailed,
    Gone,
    ServiceError,
    WorkerLost,
)
from service.jobs import Job, JobOutcome, JobResult, JobState, KnownJob

RETRY_AGAIN_S = 1.0


def result_of(job: Job, outcome: JobOutcome) -> JobResult:
    """Return the result of a job that has ended.

    Raises: the ServiceError that says why there is none.
    """
    if outcome.result is None:
        raise failure_of(job, outcome)
    return outcome.result


def content_of(known: KnownJob, index: int = 0) -> bytes:
    """Return an image of a job that has succeeded, encoded."""
    assert known.view.outcome
    return result_of(known.job, known.view.outcome).images[index]


def failure_of(job: Job, outcome: JobOutcome) -> ServiceError:
    """Return the error that tells why a job has ended without a result, or has none any more."""
    match outcome.state:
        case JobState.SUCCEEDED:
            return Gone("the images were made, and are not kept any more", code="result_expired")
        case JobState.CANCELLED:
            return Gone("this generation was cancelled", code="cancelled")
        case JobState.EXPIRED:
            return DeadlineExceeded(f"the images were not made within {job.timeout_s:g} seconds")
    if outcome.is_retryable:
        return WorkerLost(
            "the worker ended while it made the images; try again", retry_after_s=RETRY_AGAIN_S
        )
    return GenerationFailed(f"the images could not be made; see the log for {job.id}")
