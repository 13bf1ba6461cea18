"""Jobs, their states and their outcomes: the only things that pass between API, queue and worker.

Plain frozen dataclasses of JSON-like values, without torch and without HTTP, so that the two sides
may live in different processes. A job's images are fixed at admission, seeds included: run
again, elsewhere, it gives the same bytes.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Literal

from model.config import ImageRequest

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["b64_json", "url"]
Priority = Literal["low", "normal", "high"]
WorkerPhase = Literal["loading", "warming_up", "unfit", "ready"]  # unfit: its images are wrong

ANYONE = "anyone"  # who owns the jobs of those who need no key

# A job is served as though it had come so much earlier: priority is a lead that age overcomes.
PRIORITY_LEADS_S: dict[Priority, float] = {"low": -15.0, "normal": 0.0, "high": 15.0}


def new_job_id() -> str:
    """Return an id that no other job has, and nobody guesses."""
    return f"gen_{secrets.token_hex(12)}"


class JobState(StrEnum):
    """Where a job is; it enters exactly one terminal state, once, and never leaves it."""

    QUEUED = "queued"  # admitted; no image of it has a slot
    RUNNING = "running"  # claimed by a worker
    SUCCEEDED = "succeeded"  # every image is made and encoded
    FAILED = "failed"  # the engine or an encoder raised, or the worker was lost
    CANCELLED = "cancelled"  # nobody wants it any more, or the process stops
    EXPIRED = "expired"  # its timeout_s passed first
    DEAD = "dead"  # every worker that ran it was lost; kept for inspection

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)

    @property
    def meant(self) -> tuple["JobState", ...]:
        """What a client means by this state: to it a dead job is a failed one."""
        return (self, JobState.DEAD) if self is JobState.FAILED else (self,)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a client submits and the queue holds: images of one or more classes."""

    id: str
    images: tuple[ImageRequest, ...]
    num_steps: int  # steps of one image
    output_format: OutputFormat
    timeout_s: float
    priority: Priority = "normal"
    partial_images: int = 0  # previews of each image before it is finished
    owner: str = ANYONE  # whose quota it counts for, and who alone may see it
    owner_quota: int | None = None  # unfinished jobs that its owner may have; None: as others
    created_at: float = 0.0  # seconds since 1970 at which it was asked for
    metadata: Mapping[str, str] = field(default_factory=dict)  # the client's own
    warnings: tuple[str, ...] = ()  # what was asked for and has no effect
    output_compression: int | None = None  # quality of jpeg and webp, 0 to 100
    response_format: ResponseFormat = "b64_json"
    fingerprint: str = ""  # of a request that may be repeated: under the same id only the same
    traceparent: str = ""  # of the request, as in W3C trace context; "" without one

    @property
    def lead_s(self) -> float:
        """How much earlier than it came the job counts as having come."""
        return PRIORITY_LEADS_S[self.priority]

    @property
    def cost(self) -> int:
        """The steps that all its images take together; what the queue's bound counts."""
        return len(self.images) * self.num_steps


@dataclass(frozen=True, kw_only=True)
class JobTimings:
    """Seconds that a succeeded job spent in each stage."""

    queue_s: float
    generation_s: float  # from the claim to the last token of the last image
    decode_s: float  # from there to its pixels
    encode_s: float  # summed over images, which are encoded side by side
    device_s: float = 0.0  # the job's share of the device's time


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The encoded images of a succeeded job, in the job's order."""

    images: tuple[bytes, ...]
    timings: JobTimings


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended; `result` is there exactly if it succeeded, until it has expired."""

    state: JobState
    result: JobResult | None = None
    error: str | None = None
    is_retryable: bool = False  # it failed through no fault of its own: asked again, it may succeed

    def log_fields(self) -> dict[str, object]:
        """Return what a line of the log says of it, besides its state."""
        if self.result is not None:
            return {"images": len(self.result.images), **asdict(self.result.timings)}
        return {} if self.error is None else {"error": self.error}


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a running job is."""

    share: float  # of the tokens of all its images, 0 to 1
    eta_s: float | None  # until its last token; None before any step was measured


@dataclass(frozen=True, kw_only=True)
class PartialImage:
    """What is drawn of one image of a running job, encoded."""

    index: int
    content: bytes
    share: float  # of the image's tokens, 0 to 1


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as its client sees it at one moment."""

    version: int  # another one once anything but `queue_position` and `eta_s` has changed
    state: JobState
    share: float
    eta_s: float | None
    queue_position: int | None  # 1 is the next to be claimed; None once claimed
    partials: tuple[PartialImage, ...]  # all so far, in the order in which they were made
    outcome: JobOutcome | None


@dataclass(frozen=True, kw_only=True)
class KnownJob:
    """What a queue knows of a job, ended or not; times are seconds since 1970."""

    job: Job
    view: JobView
    started_at: float | None  # when its worker claimed it
    ended_at: float | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's hold on a running job."""

    job: Job
    queue_s: float  # how long the job waited
    token: str = ""  # proves the hold: of all claims of a job only the last one's ends it
    is_solo: bool = False  # lost workers before: it runs alone
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class EngineCounters:
    """What an engine has counted since it was built."""

    prefix_hits: int = 0
    prefix_misses: int = 0
    out_of_memory: int = 0
    stage_s: Mapping[str, float] = field(default_factory=dict)  # where measured


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """What a worker last said of itself."""

    name: str
    phase: WorkerPhase
    revision: str = ""  # of the model, by the files that it has
    num_slots: int = 0
    free_slots: int = 0
    step_s: float = 0.0  # duration of a recent step, smoothed; 0 before the first
    steps_left: int = 0  # of all images that it has claimed
    precision: str = ""  # that the engine computes in; "" before it is there
    is_batch_invariant: bool = False
    counters: EngineCounters = EngineCounters()


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
    num_redelivered: int = 0  # claims that were taken back from lost workers
    num_dead_letters: int = 0  # kept now
    server_memory_bytes: Mapping[str, int] = field(default_factory=dict)  # used, and its limit


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """What makes a repeated request the same request."""

    key_hash: str  # of the client's key
    fingerprint: str  # of the body: the same key with another one is refused


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A job that was given up, for people to look at."""

    id: str
    died_at: float  # seconds since 1970
    crashes: int
    error: str
    owner: str
    job: Job | None  # None if its payload cannot be read
