"""One job in the queue in memory: all that is known of it, from admission until it is forgotten.

A plain record that changes; the book moves it while it lives, the archive keeps it when it has
ended. Who follows the job waits for the event that each change sets.
"""

import asyncio
from dataclasses import dataclass, field, replace

from service.jobs import Job, JobOutcome, JobProgress, JobState, PartialImage

Place = tuple[float, int]  # when it came, less its priority's lead; and how many came before

NO_PROGRESS = JobProgress(share=0.0, eta_s=None)


@dataclass(eq=False)
class Record:
    """One job."""

    job: Job
    admitted_at: float
    place: Place
    state: JobState = JobState.QUEUED
    outcome: JobOutcome | None = None
    started_at: float | None = None  # when the claim that holds it, or that ended it, was made
    ended_at: float = 0.0
    kept_since: float = 0.0  # from when its record's time to live counts
    token: str = ""  # of the claim that holds it
    leased_until: float = 0.0
    delayed_until: float | None = None
    attempts: int = 0
    crashes: int = 0
    retried_as: str | None = None
    progress: JobProgress = NO_PROGRESS
    partials: list[PartialImage] = field(default_factory=list)
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expires_at(self) -> float:
        return self.admitted_at + self.job.timeout_s

    @property
    def num_bytes(self) -> int:
        """How much its images and previews take."""
        result = self.outcome and self.outcome.result
        contents = [partial.content for partial in self.partials]
        return sum(map(len, [*contents, *(result.images if result else ())]))

    def drop_images(self) -> None:
        """Keep how the job ended, and not what was made."""
        self.partials = []
        if self.outcome:
            self.outcome = replace(self.outcome, result=None)

    @property
    def failed_retryably(self) -> bool:
        outcome = self.outcome
        return outcome is not None and outcome.state is JobState.FAILED and outcome.is_retryable

    def touch(self) -> None:
        """Let those who follow the job look at it again."""
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()
