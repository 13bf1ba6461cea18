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
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from model.zoo import ModelInfo
from service.canary import CanaryKeeper
from service.engine_driver import EngineDriver, EngineThread, Preview, Turn, is_lost
from service.errors import EngineLost
from service.images import Pixels
from service.job_queue import WorkQueue
from service.jobs import EngineCounters, JobResult, PartialImage, WorkerPhase, WorkerStatus
from service.provenance import Provenance
from service.running_job import Encoded, RunningJob, encode_image
from service.scheduler import Image, Scheduler
from service.tracing import Traces
from service.worker_health import WorkerHealth
from service.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.worker")

UNFIT_PAUSE_S = 1.0  # of a worker that waits to try again
LOOK_AGAIN_S = 1.0  # after which it looks for jobs without the bell, which is only a hint
PROGRESS_INTERVAL_S = 0.1  # between two reports of how far jobs are


@dataclass(frozen=True, kw_only=True)
class WorkerParts:
    """What a worker is made of, besides its engine."""

    name: str
    info: ModelInfo
    queue: WorkQueue
    load_engine: Callable[[], "Engine"]
    thread: EngineThread
    health: WorkerHealth
    metrics: WorkerMetrics
    traces: Traces
    target_step_s: float
    canary_interval_s: float


class Worker:
    """Runs the jobs of one queue on one engine; calls `on_ready` when it claims the first."""

    def __init__(
        self,
        parts: WorkerParts,
        *,
        status: WorkerStatus,
        driver: EngineDriver,
        scheduler: Scheduler,
        keeper: CanaryKeeper,
        on_ready: Callable[[], None],
    ) -> None:
        self._status = status
        self._info = parts.info
        self._queue = parts.queue
        self._thread = parts.thread
        self._health = parts.health
        self._metrics = parts.metrics
        self._traces = parts.traces
        self._driver = driver
        self._scheduler = scheduler
        self._keeper = keeper
        self._on_ready = on_ready
        self._encoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode")
        self._jobs: dict[str, RunningJob] = {}
        self._counters = driver.counters
        self._progress_due_at = 0.0
        self._look_at = 0.0  # when to look for jobs
        self._bell: asyncio.Task[bool] | None = None

    def counters(self) -> EngineCounters:
        """Return what the engine had counted at its last turn."""
        return self._counters

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
                for running in self._jobs.values():
                    running.trace.end("failed" if lost else "released")
        if lost is not None:
            logger.error("%s; its %d jobs are given up", lost, len(self._jobs), exc_info=lost)
            for running in self._jobs.values():
                await self._queue.fail(running.claim, str(lost), is_retryable=True)
            raise lost

    async def _run_jobs(self, deliveries: asyncio.TaskGroup) -> None:
        await self._show_fitness()
        while self._scheduler.job_ids or not self._health.is_stopping:
            if not self._scheduler.job_ids and not await self._rest():
                continue
            try:
                await self._turn(deliveries)
            except Exception as error:  # noqa: BLE001 - only the jobs in the engine may fail
                await self._fail_all(error)

    async def _rest(self) -> bool:
        """Wait for jobs, or use the time to look at the known image; False while that is wrong, and
        no job is welcome."""
        if self._keeper.is_due():
            await self._keeper.advance()
            await self._show_fitness()
        elif self._keeper.is_right:
            # One that has rung already is for the next turn to hear.
            await asyncio.wait([self._bell or self._listen()])
        else:  # a bell that is heard is not heard by those who can work
            await asyncio.sleep(UNFIT_PAUSE_S)
        return self._keeper.is_right

    async def _show_fitness(self) -> None:
        """Tell whether this worker takes jobs, if that has changed."""
        phase: WorkerPhase = "ready" if self._keeper.is_right else "unfit"
        if phase == self._status.phase:
            return
        is_first = phase == "ready" and not self._health.was_ready
        self._status = replace(self._status, phase=phase)
        self._health.enter(phase)
        await self.report()
        logger.log(
            logging.INFO if phase == "ready" else logging.ERROR,
            "worker %s",
            phase,
            extra={"model": self._info.name, **self._driver.description},
        )
        if is_first:
            self._on_ready()

    def _room(self) -> int:
        """Return how many images to claim; a job that may have killed workers runs alone."""
        is_alone = any(running.claim.is_solo for running in self._jobs.values())
        return 0 if is_alone else self._scheduler.room()

    def _listen(self) -> asyncio.Task[bool]:
        """Return a task that ends when there may be something to claim. It outlives turns."""
        if self._bell is None or self._bell.done():
            self._bell = asyncio.create_task(self._queue.wait_ready())
        return self._bell

    async def _heard(self) -> asyncio.Task[bool] | None:
        """Return what listens for the bell, None while there is no room: what a full worker hears
        is for another, and once there is room again it looks for itself."""
        bell = self._bell
        has_rung = bell is not None and bell.done() and not bell.exception() and bell.result()
        has_room = self._room() > 0 and not self._health.is_stopping
        if has_rung or not has_room:
            self._look_at = 0.0
        if has_room:
            return self._listen()
        if bell is not None and bell.done():
            self._bell = None
            if has_rung:
                await self._queue.pass_on()
        return None

    async def _turn(self, deliveries: asyncio.TaskGroup) -> None:
        bell = await self._heard()  # before claiming, so that no ring is lost between
        # In this order: a job that was lost may be claimed again, by this very worker.
        dropped = await self._drop_revoked()
        await self._claim()
        admitted = self._scheduler.next_images()
        turn = await self._step(dropped, admitted, self._news(bell))
        self._deliver(turn, deliveries)
        await self._tell(turn)

    async def _claim(self) -> None:
        if self._health.is_stopping:
            return
        room, now = self._room(), time.monotonic()
        has_news = room > 0 and now >= self._look_at
        if has_news:
            self._look_at = now + LOOK_AGAIN_S
        for claim in await self._queue.claim(room, has_news=has_news):
            self._jobs[claim.job.id] = RunningJob(claim, self._traces.job(claim))
            self._scheduler.add(claim.job, claim.queue_s)
            room -= len(claim.job.images)
            if room <= 0:  # more may wait
                self._look_at = 0.0

    async def _drop_revoked(self) -> list[Image]:
        """Forget jobs that nobody wants; return their images that hold slots."""
        dropped: list[Image] = []
        for job_id in await self._queue.revoked(self._scheduler.job_ids):
            if running := self._jobs.pop(job_id, None):
                running.trace.end("dropped")
            dropped += self._scheduler.drop(job_id)
        return dropped

    def _news(self, bell: asyncio.Task[bool] | None) -> Callable[[], bool]:
        """Return what tells the engine's thread to stop after the running step."""
        if self._scheduler.is_learning:
            return lambda: True
        return bell.done if bell and self._room() else lambda: False

    async def _step(
        self, dropped: Sequence[Image], admitted: Sequence[Image], has_news: Callable[[], bool]
    ) -> Turn:
        for image in admitted:
            self._begin(self._jobs[image.job.id])
        self._health.note_work(is_in_flight=bool(self._scheduler.job_ids))
        turn = await self._thread.call(partial(self._driver.turn, dropped, admitted, has_news))
        self._scheduler.advance(turn.shares, turn.step_times_s)
        self._scheduler.finish(turn.full)
        if (dropped or turn.full) and not self._scheduler.job_ids:
            self._look_at = 0.0  # a job that runs alone may have waited for this
        self._health.note_work(is_in_flight=bool(self._scheduler.job_ids))
        self._account(turn)
        return turn

    def _begin(self, running: RunningJob) -> None:
        """Note that an image of the job enters a slot; at the first, whom it shares steps with."""
        if not running.started_at:
            running.started_at = time.monotonic()
            others = (self._jobs[job_id] for job_id in self._scheduler.job_ids)
            running.trace.share(r.trace for r in others if r.started_at and r is not running)

    def _account(self, turn: Turn) -> None:
        """Divide the device's time among the images that shared it."""
        if not turn.shares:
            return
        self._keeper.note_work()
        for step_s in turn.step_times_s:
            self._metrics.observe_step(step_s, len(turn.shares), self._status.num_slots)
        share_s = sum(turn.step_times_s) / len(turn.shares)
        for image in turn.shares:
            self._jobs[image.job.id].device_s += share_s

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

    async def _deliver_preview(self, running: RunningJob, preview: Preview) -> None:
        async with running.telling:
            encoded = await self._encoded(running, preview.image, lambda: preview.pixels, {})
            if encoded is not None:
                partial_image = PartialImage(
                    index=preview.image.index, content=encoded.content, share=preview.share
                )
                await self._queue.add_partial(running.claim, partial_image)
                if not running.has_partial:
                    running.has_partial = True
                    self._metrics.observe_first_partial(running.age_s)

    async def _deliver_image(
        self, running: RunningJob, image: Image, pixels: Callable[[], Pixels]
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
                await self._complete(running, result)

    async def _complete(self, running: RunningJob, result: JobResult) -> None:
        started = time.monotonic()
        is_ours = await self._queue.complete(running.claim, result)
        ended = time.monotonic()
        running.trace_stages(started, ended)
        running.trace.end("succeeded" if is_ours else "lost", result)
        if is_ours:
            self._metrics.observe_job(
                result.timings,
                len(result.images),
                tokens_s=running.tokens_s,
                store_s=ended - started,
            )

    async def _encoded(
        self,
        running: RunningJob,
        image: Image,
        pixels: Callable[[], Pixels],
        text: dict[str, str],
    ) -> Encoded | None:
        """Encode an image when its pixels are there; if that fails, fail its job."""
        encoding = asyncio.get_running_loop().run_in_executor(
            self._encoders, encode_image, pixels, image.job, text
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
        running.trace.end("failed")
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
            running = self._jobs.pop(job_id)
            running.trace.end("failed")
            await self._queue.fail(running.claim, f"the engine failed: {type(error).__name__}")
        try:
            await self._thread.call(self._driver.clear)
        except RuntimeError as second:
            raise EngineLost(f"the slots cannot be freed: {_first_line(second)}") from second
        self._health.note_work(is_in_flight=False)
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


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
