"""The worker: claims jobs from the queue, drives the engine, hands the images back.

One loop, whose every turn is a step of the engine for all images in it, or a few of them where
nothing happens in between. Requests that arrive together share steps; an image joins at a step
boundary, when the scheduler lets it in, and leaves when it is full.

Pixels are waited for and encoded in a pool of threads, while the next step runs. A turn that fails
takes the jobs in the engine with it and no others; after an error that only a new process can mend,
the worker ends and every job that it holds is handed back.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from model.zoo import ModelInfo
from service.engine_driver import (
    EngineDriver,
    EngineThread,
    Preview,
    Turn,
    is_lost,
)
from service.errors import EngineLost
from service.images import Pixels, encode
from service.job_queue import WorkQueue
from service.jobs import (
    Claim,
    EngineCounters,
    JobResult,
    JobTimings,
    OutputFormat,
    PartialImage,
    WorkerStatus,
)
from service.metrics import Metrics
from service.provenance import Provenance
from service.scheduler import Image, Scheduler

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.worker")

PROGRESS_INTERVAL_S = 0.1  # between two reports of how far jobs are


@dataclass(frozen=True)
class _Encoded:
    content: bytes
    pixels_at: float  # when the pixels had arrived
    seconds: float


@dataclass
class _RunningJob:
    """A claimed job that has not ended."""

    claim: Claim
    claimed_at: float = field(default_factory=time.monotonic)
    full_at: float = 0.0  # the newest image
    images: dict[int, _Encoded | None] = field(default_factory=dict)  # None: it failed
    # Partial images and the end are told one after the other, in the order in which they came.
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)

    def result(self) -> JobResult | None:
        """Put the images together; None if one failed. Only when all were delivered."""
        images = [image for _, image in sorted(self.images.items()) if image is not None]
        if len(images) < len(self.images):
            return None
        timings = JobTimings(
            queue_s=self.claim.queue_s,
            generation_s=self.full_at - self.claimed_at,
            decode_s=max(image.pixels_at for image in images) - self.full_at,
            encode_s=sum(image.seconds for image in images),
        )
        return JobResult(images=tuple(image.content for image in images), timings=timings)


async def run_worker(
    on_ready: Callable[[], None],
    *,
    name: str,
    info: ModelInfo,
    queue: WorkQueue,
    load_engine: Callable[[], "Engine"],
    metrics: Metrics,
    thread: EngineThread,
    target_step_s: float,
    stopping: asyncio.Event | None = None,
) -> None:
    """Load the model, make a first image, call `on_ready`, then run jobs until cancelled, or until
    those that are claimed when `stopping` is set are done.

    Raises: what `load_engine` and the first image raise, and EngineLost.
    """
    with closing(thread):
        await queue.report(WorkerStatus(name=name, phase="loading"))
        engine = await thread.call(load_engine)
        await queue.report(WorkerStatus(name=name, phase="warming_up"))
        driver = EngineDriver(engine)
        await thread.call(partial(driver.make_first_image, info))
        worker = Worker(
            status=WorkerStatus(
                name=name,
                phase="ready",
                num_slots=engine.num_slots,
                precision=engine.precision.name,
                is_batch_invariant=engine.batch_invariant,
            ),
            info=info,
            queue=queue,
            driver=driver,
            scheduler=Scheduler(num_slots=engine.num_slots, target_step_s=target_step_s),
            metrics=metrics,
            thread=thread,
            stopping=stopping or asyncio.Event(),
        )
        await worker.report()
        logger.info(
            "worker ready",
            extra={
                "model": info.name,
                "slots": engine.num_slots,
                "precision": engine.precision.name,
                "batch_invariant": engine.batch_invariant,
            },
        )
        on_ready()
        await worker.run()


class Worker:
    """Runs the jobs of one queue on one engine."""

    def __init__(
        self,
        *,
        status: WorkerStatus,
        info: ModelInfo,
        queue: WorkQueue,
        driver: EngineDriver,
        scheduler: Scheduler,
        metrics: Metrics,
        thread: EngineThread,
        stopping: asyncio.Event,
    ) -> None:
        self._status = status
        self._info = info
        self._queue = queue
        self._driver = driver
        self._scheduler = scheduler
        self._metrics = metrics
        self._thread = thread
        self._stopping = stopping
        self._encoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode")
        self._jobs: dict[str, _RunningJob] = {}
        self._counters = EngineCounters()
        self._progress_due_at = 0.0
        self._bell: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run jobs until cancelled, or stopping and done.

        Raises: EngineLost, after every job that has not ended was handed back.
        """
        lost: BaseException | None = None
        with self._encoders:
            try:
                async with asyncio.TaskGroup() as deliveries:
                    await self._run_jobs(deliveries)
            except* EngineLost as errors:
                lost = errors.exceptions[0]
            finally:
                if self._bell is not None:
                    self._bell.cancel()
        if lost is not None:
            logger.error("%s; its %d jobs are given up", lost, len(self._jobs), exc_info=lost)
            for running in self._jobs.values():
                await self._queue.fail(running.claim, str(lost), is_retryable=True)
            raise lost

    async def _run_jobs(self, deliveries: asyncio.TaskGroup) -> None:
        while self._scheduler.job_ids or not self._stopping.is_set():
            if not self._scheduler.job_ids:
                await asyncio.shield(self._listen())
            try:
                await self._turn(deliveries)
            except Exception as error:  # noqa: BLE001 - only the jobs in the engine may fail
                await self._fail_all(error)

    def _listen(self) -> asyncio.Task[None]:
        """Return a task that ends when there may be something to claim. It outlives turns."""
        if self._bell is None or self._bell.done():
            self._bell = asyncio.create_task(self._queue.wait_ready())
        return self._bell

    async def _turn(self, deliveries: asyncio.TaskGroup) -> None:
        bell = self._listen()  # before claiming, so that no ring is lost between
        # In this order: a job that was lost may be claimed again, by this very worker.
        dropped = await self._drop_revoked()
        await self._claim()
        admitted = self._scheduler.next_images()
        turn = await self._step(dropped, admitted, self._news(bell))
        self._deliver(turn, deliveries)
        await self._tell(turn)

    async def _claim(self) -> None:
        if self._stopping.is_set():
            return
        for claim in await self._queue.claim(self._scheduler.room()):
            self._jobs[claim.job.id] = _RunningJob(claim)
            self._scheduler.add(claim.job, claim.queue_s)

    async def _drop_revoked(self) -> list[Image]:
        """Forget jobs that nobody wants; return their images that hold slots."""
        dropped: list[Image] = []
        for job_id in await self._queue.revoked(self._scheduler.job_ids):
            self._jobs.pop(job_id, None)
            dropped += self._scheduler.drop(job_id)
        return dropped

    def _news(self, bell: asyncio.Task[None]) -> Callable[[], bool]:
        """Return what tells the engine's thread to stop after the running step."""
        if self._scheduler.is_learning:
            return lambda: True
        return bell.done if self._scheduler.room() else lambda: False

    async def _step(
        self, dropped: Sequence[Image], admitted: Sequence[Image], has_news: Callable[[], bool]
    ) -> Turn:
        turn = await self._thread.call(partial(self._driver.turn, dropped, admitted, has_news))
        self._scheduler.advance(turn.shares, turn.step_times_s)
        for step_s in turn.step_times_s:
            self._metrics.observe_step(
                self._info.name, step_s, len(turn.shares), self._status.num_slots
            )
        self._scheduler.finish(turn.full)
        return turn

    def _deliver(self, turn: Turn, deliveries: asyncio.TaskGroup) -> None:
        """Send what the turn made on its way to the clients."""
        for preview in turn.previews:
            running = self._jobs[preview.image.job.id]
            deliveries.create_task(self._deliver_preview(running, preview))
        for row, image in enumerate(turn.full):
            assert turn.pixels is not None
            running = self._jobs[image.job.id]
            running.full_at = turn.full_at
            pixels = partial(turn.pixels.image, row)
            deliveries.create_task(self._deliver_image(running, image, pixels))

    async def _tell(self, turn: Turn) -> None:
        """Tell the queue how the worker and its jobs are."""
        self._counters = turn.counters
        await self.report()
        if (now := time.monotonic()) >= self._progress_due_at:
            self._progress_due_at = now + PROGRESS_INTERVAL_S
            await self._queue.progress(self._scheduler.progress())

    async def _deliver_preview(self, running: _RunningJob, preview: Preview) -> None:
        async with running.telling:
            encoded = await self._encoded(running, preview.image, lambda: preview.pixels, {})
            if encoded is not None:
                partial_image = PartialImage(
                    index=preview.image.index, content=encoded.content, share=preview.share
                )
                await self._queue.add_partial(running.claim, partial_image)

    async def _deliver_image(
        self, running: _RunningJob, image: Image, pixels: Callable[[], Pixels]
    ) -> None:
        texts = Provenance.of(self._info, image.request).texts()
        running.images[image.index] = await self._encoded(running, image, pixels, texts)
        if len(running.images) < len(image.job.images):
            return
        async with running.telling:
            if self._jobs.get(image.job.id) is running:  # and not a later claim of the same job
                del self._jobs[image.job.id]
            result = running.result()
            if result is not None:
                await self._queue.complete(running.claim, result)

    async def _encoded(
        self,
        running: _RunningJob,
        image: Image,
        pixels: Callable[[], Pixels],
        text: dict[str, str],
    ) -> _Encoded | None:
        """Encode an image when its pixels are there; if that fails, fail its job."""
        encoding = asyncio.get_running_loop().run_in_executor(
            self._encoders, _encode, pixels, image.job.output_format, text
        )
        await asyncio.wait([encoding])
        error = encoding.exception()
        if error is None:
            return encoding.result()
        if is_lost(error):
            raise EngineLost(f"the device failed while it decoded: {_first_line(error)}") from error
        # Its other images are dropped at the next turn, like those of every job that has ended.
        if await self._queue.fail(running.claim, f"an image failed: {type(error).__name__}"):
            logger.error("an image failed", exc_info=error, extra={"job": image.job.id})
        return None

    async def _fail_all(self, error: Exception) -> None:
        """Fail every job that the engine holds and free its slots.

        Raises: EngineLost if the engine cannot go on.
        """
        if is_lost(error):
            raise EngineLost(f"the device failed in a step: {_first_line(error)}") from error
        failed = self._scheduler.job_ids
        logger.error("a step failed, and its %d jobs with it", len(failed), exc_info=error)
        for job_id in failed:
            self._scheduler.drop(job_id)
            claim = self._jobs.pop(job_id).claim
            await self._queue.fail(claim, f"the engine failed: {type(error).__name__}")
        try:
            await self._thread.call(self._driver.clear)
        except RuntimeError as second:
            raise EngineLost(f"the slots cannot be freed: {_first_line(second)}") from second
        await self.report()

    async def report(self) -> None:
        """Tell the queue how this worker is."""
        status = replace(
            self._status,
            free_slots=self._status.num_slots - self._scheduler.num_running,
            step_s=self._scheduler.step_s,
            steps_left=self._scheduler.steps_left,
            counters=self._counters,
        )
        await self._queue.report(status)


def _encode(
    pixels: Callable[[], Pixels], output_format: OutputFormat, text: dict[str, str]
) -> _Encoded:
    image, started = pixels(), time.monotonic()
    content = encode(image, output_format, text)
    return _Encoded(content, pixels_at=started, seconds=time.monotonic() - started)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
