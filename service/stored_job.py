"""A job as it lies on the queue's server: its hash's fields, read and checked.

Between the reader and the scripts, which fetch the fields, and the verbs of the queue. What is
wrong with previews or a result costs the client those, and never the process that reads them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from service.jobs import (
    JobOutcome,
    JobResult,
    JobState,
    JobView,
    KnownJob,
    PartialImage,
    WorkerStatus,
)
from service.payloads import PayloadError, decode_job, decode_partial, decode_result
from service.queue_policy import backlog_s

logger = logging.getLogger("bar.queue")

FIELDS = ("state", "version", "share", "eta", "error", "retryable", "crashes", "started", "ended",
          "owner", "payload")  # fmt: skip


@dataclass(frozen=True)
class StoredJob:
    """The fields of one job, and where it stands among those that wait."""

    id: str
    fields: Mapping[str, bytes | None]  # those in FIELDS
    rank: int | None  # among the ready
    num_ready: int
    queued_cost: int
    partials: Sequence[bytes] = ()
    result: bytes | None = None

    @property
    def state(self) -> JobState:
        return JobState(self._text("state"))

    def known(self, workers: Sequence[WorkerStatus]) -> KnownJob:
        """Return all that is known of it.

        Raises: PayloadError if its payload cannot be read.
        """
        return KnownJob(
            job=decode_job(self.id, self.fields["payload"] or b""),
            view=self.view(workers),
            started_at=self._time("started"),
            ended_at=self._time("ended"),
        )

    def view(self, workers: Sequence[WorkerStatus]) -> JobView:
        """Return how it is."""
        state, eta = self.state, self._text("eta")
        if state is JobState.QUEUED:
            share_of_queue = 1.0 if self.rank is None else (self.rank + 1) / (self.num_ready or 1)
            eta_s = backlog_s(workers, self.queued_cost * share_of_queue)
        else:
            eta_s = float(eta) if eta and not state.is_terminal else None
        return JobView(
            version=int(self._text("version") or 0),
            state=state,
            share=float(self._text("share") or 0),
            eta_s=eta_s,
            queue_position=None if self.rank is None else self.rank + 1,
            partials=tuple(self._partials()),
            outcome=self._outcome() if state.is_terminal else None,
        )

    def _text(self, name: str) -> str:
        return (self.fields[name] or b"").decode()

    def _time(self, name: str) -> float | None:
        return int(text) / 1e6 if (text := self._text(name)) else None

    def _partials(self) -> Iterator[PartialImage]:
        for content in self.partials:
            try:
                yield decode_partial(content)
            except PayloadError as error:
                logger.warning("a preview cannot be read: %s", error, extra={"job": self.id})

    def _outcome(self) -> JobOutcome:
        result: JobResult | None = None
        if self.result is not None and self.state is JobState.SUCCEEDED:
            try:
                result = decode_result(self.result)
            except PayloadError as error:
                # A result in a newer format may be read by another API: it is worth asking again.
                return JobOutcome(
                    state=JobState.FAILED, error=str(error), is_retryable=error.is_newer
                )
        return JobOutcome(
            state=self.state,
            result=result,
            error=self._text("error") or None,
            is_retryable=self.fields["retryable"] == b"1",
        )


def known_jobs(jobs: Iterable[StoredJob], workers: Sequence[WorkerStatus]) -> Iterator[KnownJob]:
    """Yield what is known of those of `jobs` that can be read."""
    for job in jobs:
        try:
            yield job.known(workers)
        except PayloadError as error:
            logger.warning("a job cannot be read: %s", error, extra={"job": job.id})
