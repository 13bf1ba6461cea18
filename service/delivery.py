"""Waits for a job on behalf of the client that asked for it, and gives it the outcome.

The last part of a request's life in the API. A client waits for one answer, or is told of every
change as a server-sent event. Either way its job ends with it: whoever leaves, by closing the
connection or by running out of time, frees the slots.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.types import Receive

from service.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    QueueUnavailable,
    ServiceError,
    WorkerLost,
)
from service.event_stream import Emit, EventStream, disconnected
from service.job_queue import JobQueue
from service.jobs import Job, JobOutcome, JobResult, JobState, JobView, PartialImage
from service.metrics import Metrics

RETRY_ELSEWHERE_S = 1.0  # another replica takes over
POLL_S = 1.0  # after which a waiting job's place in the queue is looked up again


class Delivery:
    """Gives clients what becomes of the jobs of one model."""

    def __init__(self, model: str, queue: JobQueue, metrics: Metrics) -> None:
        self._model = model
        self._queue = queue
        self._metrics = metrics

    async def result(self, job: Job, receive: Receive) -> JobResult:
        """Wait until the job has ended, its time is up or its client has gone.

        Raises: a ServiceError that says why there is no result.
        """
        async with self._until_end(job):
            ended = asyncio.create_task(self._queue.wait(job.id))
            gone = asyncio.create_task(disconnected(receive))
            try:
                await asyncio.wait(
                    {ended, gone}, timeout=job.timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not ended.done() and gone.done():
                    raise ClientDisconnected("the client has gone")
                if not ended.done():
                    await self._expire(job)
                outcome = await ended
            finally:
                gone.cancel()
                ended.cancel()
        return _result_of(outcome, job)

    def events(self, job: Job, render: Callable[[JobResult], bytes]) -> EventStream:
        """Answer with the job's events; `render` makes the data of the last, on one line."""

        async def run(emit: Emit) -> None:
            async with self._until_end(job):
                outcome = await self._follow(job, emit)
            try:
                result = _result_of(outcome, job)
            except ServiceError as error:
                await emit("error", json.dumps(error.envelope()).encode())
            else:
                await emit("completed", await asyncio.to_thread(render, result))

        return EventStream(run)

    async def _follow(self, job: Job, emit: Emit) -> JobOutcome:
        """Tell of progress and partial images until the job has ended."""
        expires_at = time.monotonic() + job.timeout_s
        version, num_told, told = -1, 0, b""
        while True:
            left_s = expires_at - time.monotonic()
            if left_s <= 0:
                await self._expire(job)
            view = await self._queue.follow(job.id, version, max(0.0, min(POLL_S, left_s)))
            for partial in view.partials[num_told:]:
                await emit("partial_image", await asyncio.to_thread(_partial_json, partial))
            if view.outcome:
                return view.outcome
            version, num_told = view.version, len(view.partials)
            if (progress := _progress_json(view)) != told:
                await emit("progress", progress)
                told = progress

    async def _expire(self, job: Job) -> None:
        if phase := await self._queue.expire(job.id):
            self._metrics.count_cancellation(self._model, phase, "timeout")

    @asynccontextmanager
    async def _until_end(self, job: Job) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            # Nobody waits any longer. While the queue is away, the job's own time ends it.
            with suppress(QueueUnavailable):
                if phase := await self._queue.cancel(job.id):
                    self._metrics.count_cancellation(self._model, phase, "disconnect")
            raise
        finally:
            await self._queue.forget(job.id)


def _result_of(outcome: JobOutcome, job: Job) -> JobResult:
    """Return the result of a job that has ended, or raise the ServiceError that tells its client
    why there is none."""
    if outcome.result is not None:
        return outcome.result
    if outcome.state is JobState.EXPIRED:
        raise DeadlineExceeded(f"the images were not made within {job.timeout_s:g} seconds")
    if outcome.state is JobState.CANCELLED:  # by nobody else than a process that cannot finish it
        raise Draining("this server is shutting down", retry_after_s=RETRY_ELSEWHERE_S)
    if outcome.is_retryable:
        raise WorkerLost(
            "the worker ended while it made the images; try again", retry_after_s=RETRY_ELSEWHERE_S
        )
    raise GenerationFailed(f"the images could not be made; see the log for {job.id}")


def _progress_json(view: JobView) -> bytes:
    values = {
        "status": view.state,
        "progress": view.share,
        "eta_s": None if view.eta_s is None else round(view.eta_s, 3),
        "queue_position": view.queue_position,
    }
    return json.dumps(values).encode()


def _partial_json(partial: PartialImage) -> bytes:
    values = {
        "index": partial.index,
        "b64_json": base64.b64encode(partial.content).decode(),
        "progress": partial.share,
    }
    return json.dumps(values).encode()
