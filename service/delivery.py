"""Waits for a job on behalf of the client that asked for it, and gives it the outcome.

The last part of a request's life in the API. A client waits for one answer, or is told of every
change as a server-sent event. A job that nobody can ask for again ends with its client: whoever
leaves, by closing the connection or by running out of time, frees the slots.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.types import Receive

from service.errors import ClientDisconnected, QueueUnavailable, ServiceError
from service.event_stream import Emit, Event, EventStream, disconnected
from service.intake import Intake, shutting_down
from service.jobs import Job, JobOutcome, JobState, JobView, KnownJob, PartialImage
from service.outcomes import result_of
from service.served_models import ServedModel

POLL_S = 1.0  # after which a waiting job's place in the queue is looked up again

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What a client has been told of a job; the id of the last event that told it."""

    version: int = -1
    num_partials: int = 0

    @classmethod
    def read(cls, last_event_id: str | None) -> "Seen":
        """Return what the client of a broken stream has seen; nothing if its id is not ours."""
        match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", last_event_id or "", re.ASCII)
        return cls(int(match[1]), int(match[2])) if match else cls()

    def __str__(self) -> str:
        return f"{max(self.version, 0)}-{self.num_partials}"


class Telling(Protocol):
    """The words in which a kind of client is told of a job; data on one line."""

    is_resumable: bool  # such clients can come back to a stream that broke

    def progress(self, job: Job, view: JobView) -> Event | None:
        """Tell how far a job is; None where such clients are not told."""

    def partial(self, job: Job, partial: PartialImage) -> Event:
        """Show what is drawn of an image."""

    def completed(self, known: KnownJob) -> Sequence[Event]:
        """Hand over the result."""


class Delivery:
    """Gives clients what becomes of one job; `is_kept` if it goes on when its client leaves."""

    def __init__(self, served: ServedModel, intake: Intake, job: Job, *, is_kept: bool) -> None:
        self._model = served.info.name
        self._queue = served.queue
        self._intake = intake
        self._job = job
        self._is_kept = is_kept
        # By this process's own clock from now on, at the latest: who made the job may have another.
        self._ends_at = time.monotonic() + job.timeout_s

    async def result(self, receive: Receive) -> KnownJob:
        """Wait until the job has succeeded, its time is up or its client has gone.

        Raises: a ServiceError that says why there is no result.
        """
        async with self._until_end():
            waiting = self._queue.wait(self._job.id)
            outcome = await _unless_gone(receive, waiting, self._left_s())
            if outcome is None:
                await self._expire()
                outcome = await self._queue.wait(self._job.id)
        self.check_success(outcome)
        return await self._ended(outcome)

    async def within(self, receive: Receive, wait_s: float) -> KnownJob | None:
        """Wait at most `wait_s` for the job's end; return how it is then, None if it is lost."""
        job_id = self._job.id
        with suppress(KeyError):
            if wait_s > 0:
                await _unless_gone(receive, self._queue.wait(job_id), wait_s)
            return await self._queue.find(job_id)
        return None

    def events(self, telling: Telling, seen: Seen) -> EventStream:
        """Answer with the job's events since those `seen`, in the words of `telling`."""

        async def run(emit: Emit) -> int:
            try:
                async with self._until_end():
                    outcome, last = await self._follow(telling, emit, seen)
                self.check_success(outcome)
                known = await self._ended(outcome)
                events = await asyncio.to_thread(telling.completed, known)
            except ServiceError as error:
                await emit(("error", json.dumps(error.envelope()).encode()), "")
                return error.status
            for event in events:
                await emit(event, self._event_id(telling, last))
            return 200

        return EventStream(run)

    async def _follow(self, telling: Telling, emit: Emit, seen: Seen) -> tuple[JobOutcome, Seen]:
        """Tell of progress and partial images until the job has ended."""
        told: Event | None = None
        while True:
            left_s = self._left_s()
            if left_s <= 0:
                await self._expire()
            view = await self._queue.follow(
                self._job.id, seen.version, max(0.0, min(POLL_S, left_s))
            )
            for partial in view.partials[seen.num_partials :]:
                event = await asyncio.to_thread(telling.partial, self._job, partial)
                seen = Seen(seen.version, seen.num_partials + 1)
                await emit(event, self._event_id(telling, seen))
            seen = Seen(view.version, seen.num_partials)
            if view.outcome:
                return view.outcome, seen
            if (progress := telling.progress(self._job, view)) and progress != told:
                await emit(progress, self._event_id(telling, seen))
                told = progress

    @staticmethod
    def _event_id(telling: Telling, seen: Seen) -> str:
        return str(seen) if telling.is_resumable else ""

    def _left_s(self) -> float:
        """Time left to the job at most; one of an earlier request the queue ends before."""
        return max(self._ends_at - time.monotonic(), 0.0)

    async def _expire(self) -> None:
        if phase := await self._queue.expire(self._job.id):
            self._count_cancellation(phase, "timeout")

    @asynccontextmanager
    async def _until_end(self) -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            raise job_lost() from None
        except BaseException:
            # Nobody waits any longer. While the queue is away, the job's own time ends it.
            if not self._is_kept:
                with suppress(QueueUnavailable):
                    if phase := await self._queue.cancel(self._job.id):
                        self._count_cancellation(phase, "disconnect")
            raise
        finally:
            can_return = self._is_kept or self._job.response_format == "url"
            await self._queue.forget(self._job.id, keeps_result=can_return)

    def check_success(self, outcome: JobOutcome) -> None:
        """Raise a ServiceError that says why there is no result, unless there is one."""
        if outcome.state is JobState.CANCELLED and self._intake.is_draining:
            raise shutting_down()
        result_of(self._job, outcome)

    async def _ended(self, outcome: JobOutcome) -> KnownJob:
        if self._is_kept and (known := await self._queue.find(self._job.id)):
            return known  # it may have ended long ago
        view = JobView(
            version=0, state=outcome.state, share=1.0, eta_s=0.0, queue_position=None,
            partials=(), outcome=outcome,
        )  # fmt: skip
        return KnownJob(job=self._job, view=view, started_at=None, ended_at=time.time())

    def _count_cancellation(self, phase: JobState, cause: str) -> None:
        self._intake.metrics.count_cancellation(self._model, phase, cause)


def job_lost() -> QueueUnavailable:
    """Return the error that lets a client send its request again."""
    return QueueUnavailable(
        "the queue has lost this job; ask again", code="job_lost", retry_after_s=1.0
    )


async def _unless_gone(
    receive: Receive, waiting: Coroutine[Any, Any, T], timeout_s: float
) -> T | None:
    """Return what comes of `waiting`, None if it takes longer.

    Raises: ClientDisconnected as soon as the client has gone.
    """
    ended = asyncio.create_task(waiting)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({ended, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        if gone.done():
            raise ClientDisconnected("the client has gone")
        return None
    finally:
        gone.cancel()
        ended.cancel()
