"""Jobs, their states and their outcomes: the only things that pass between API, queue and worker.

Plain frozen dataclasses of JSON-like values, without torch and without HTTP, so that the two sides
may live in different processes. A job's images are fixed at admission, seeds included: run
again, elsewhere, it gives the same bytes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from model.config import ImageRequest

OutputFormat = Literal["png", "jpeg", "webp"]


class JobState(StrEnum):
    """Where a job is; it enters exactly one terminal state, once, and never leaves it."""

    QUEUED = "queued"  # admitted; no image of it has a slot
    RUNNING = "running"  # claimed by a worker
    SUCCEEDED = "succeeded"  # every image is made and encoded
    FAILED = "failed"  # the engine or an encoder raised
    CANCELLED = "cancelled"  # nobody wants it any more, or the process stops
    EXPIRED = "expired"  # its timeout_s passed first

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a client submits and the queue holds: images of one or more classes."""

    id: str
    images: tuple[ImageRequest, ...]
    num_steps: int  # steps of one image
    output_format: OutputFormat
    timeout_s: float

    @property
    def cost(self) -> int:
        """The steps that all its images take together; what the queue's bound counts."""
        return len(self.images) * self.num_steps


@dataclass(frozen=True, kw_only=True)
class JobTimings:
    """Seconds that a succeeded job spent in each stage."""

    queue_s: float
    generation_s: float  # from the claim to the last token of the last image
    decode_s: float
    encode_s: float  # summed over images, which are encoded side by side


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The encoded images of a succeeded job, in the job's order."""

    images: tuple[bytes, ...]
    timings: JobTimings


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended; `result` is there exactly if it succeeded."""

    state: JobState
    result: JobResult | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's hold on a running job."""

    job: Job
    queue_s: float  # how long the job waited


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """What a worker last said of itself."""

    name: str
    phase: Literal["loading", "warming_up", "ready"]
    num_slots: int = 0
    free_slots: int = 0
    step_s: float = 0.0  # duration of a recent step, smoothed; 0 before the first


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """The queue at one moment; counts are read, never counted up and down."""

    jobs_waiting: int
    jobs_running: int
    images_waiting: int
    images_running: int
    cost_waiting: int
    max_queued_cost: int
    oldest_waiting_s: float
    num_accepted: int
    num_ended: dict[JobState, int]
    workers: tuple[WorkerStatus, ...]
