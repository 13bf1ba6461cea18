"""The worker: claims jobs from the queue, drives the engine, hands the images back.

One loop, whose every turn is one step of the engine for all images in it. Requests that arrive
together share steps; a job joins at the next step boundary and leaves when its images are full.

The engine is not thread-safe and its calls are long: one thread makes all of them and the event
loop only waits. Encoding goes to a pool beside it, while the next step runs. Torch is not imported
here; `load_engine` does that, in the engine's thread.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from model.config import ImageRequest
from model.zoo import ModelInfo
from service.images import Pixels, encode, provenance
from service.job_queue import MemoryJobQueue
from service.jobs import Claim, JobResult, JobTimings, OutputFormat, WorkerStatus
from service.metrics import Metrics

if TYPE_CHECKING:
    from model.engine import Engine

logger = logging.getLogger("bar.worker")

SMOOTHING = 0.1  # weight of the newest step in the reported step time

T = TypeVar("T")


class EngineThread:
    """The one thread that calls the engine."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._last: Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call is running, which nothing can interrupt."""
        return self._last is not None and not self._last.done()

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, called in the thread."""
        future = self._last = self._pool.submit(function)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the thread end after its current call."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _RunningJob:
    """A claimed job while its images are being made."""

    claim: Claim
    claimed_at: float = field(default_factory=time.monotonic)
    decode_s: float = 0.0
    encodings: dict[int, asyncio.Future[tuple[bytes, float]]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return len(self.encodings) == len(self.claim.job.images)


@dataclass(frozen=True)
class _Image:
    """One image of a running job."""

    running: _RunningJob
    index: int

    @property
    def job_id(self) -> str:
        return self.running.claim.job.id

    @property
    def request(self) -> ImageRequest:
        return self.running.claim.job.images[self.index]


async def run_worker(
    on_ready: Callable[[], None],
    *,
    name: str,
    info: ModelInfo,
    queue: MemoryJobQueue,
    load_engine: Callable[[], "Engine"],
    metrics: Metrics,
    thread: EngineThread,
) -> None:
    """Load the model, make a first image, call `on_ready`, then run jobs until cancelled.

    Raises: what `load_engine` and the first image raise, and what the engine raises while its
    slots are freed after a failed step: no job can run then.
    """
    with closing(thread):
        await queue.report(WorkerStatus(name=name, phase="loading"))
        engine = await thread.call(load_engine)
        await queue.report(WorkerStatus(name=name, phase="warming_up"))
        await thread.call(partial(_make_first_image, engine, info))
        worker = Worker(
            name=name, info=info, queue=queue, engine=engine, metrics=metrics, thread=thread
        )
        await worker.report()
        logger.info("worker ready", extra={"model": info.name, "slots": engine.num_slots})
        on_ready()
        await worker.run()


def _make_first_image(engine: "Engine", info: ModelInfo) -> None:
    """Make an image, so that the first request finds everything allocated and proven to work."""
    engine.admit(ImageRequest(class_id=0, seed=0, sampling=info.sampling))
    full: list[int] = []
    while not full:
        full = engine.step()
    (pixels,) = engine.decode(full)
    encode(pixels, "png", {})


class Worker:
    """Runs the jobs of one queue on one engine."""

    def __init__(
        self,
        *,
        name: str,
        info: ModelInfo,
        queue: MemoryJobQueue,
        engine: "Engine",
        metrics: Metrics,
        thread: EngineThread,
    ) -> None:
        self._name = name
        self._info = info
        self._queue = queue
        self._engine = engine
        self._metrics = metrics
        self._thread = thread
        self._encoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode")
        self._jobs: dict[str, _RunningJob] = {}  # with an image that is not full yet
        self._waiting: deque[_Image] = deque()  # for a slot
        self._slots: dict[int, _Image] = {}
        self._step_s = 0.0

    async def run(self) -> None:
        """Run jobs until cancelled; a step that fails takes the jobs in the engine with it."""
        with self._encoders:
            await self._run_jobs()

    async def _run_jobs(self) -> None:
        async with asyncio.TaskGroup() as completions:
            while True:
                if not self._jobs:
                    await self._queue.wait_ready()
                try:
                    await self._turn(completions)
                except Exception as error:  # noqa: BLE001 - only the jobs in the engine may fail
                    await self._fail_all(error)

    async def _turn(self, completions: asyncio.TaskGroup) -> None:
        await self._claim()
        await self._drop_revoked()
        await self._admit()
        full = await self._step()
        for running in await self._retire(full):
            completions.create_task(self._complete(running))

    async def _claim(self) -> None:
        room = self._engine.free_slots - len(self._waiting)
        for claim in await self._queue.claim(room):
            running = self._jobs[claim.job.id] = _RunningJob(claim)
            self._waiting.extend(_Image(running, i) for i in range(len(claim.job.images)))

    async def _drop_revoked(self) -> None:
        revoked = set(await self._queue.revoked(list(self._jobs)))
        if revoked:
            for job_id in revoked:
                del self._jobs[job_id]
            self._waiting = deque(i for i in self._waiting if i.job_id not in revoked)
            await self._free([slot for slot, i in self._slots.items() if i.job_id in revoked])

    async def _admit(self) -> None:
        while self._waiting and self._engine.free_slots:
            image = self._waiting.popleft()
            slot = await self._thread.call(partial(self._engine.admit, image.request))
            self._slots[slot] = image

    async def _step(self) -> list[int]:
        if not self._slots:
            return []
        started = time.monotonic()
        full = await self._thread.call(self._engine.step)
        step_s = time.monotonic() - started
        self._step_s += (step_s - self._step_s) * (SMOOTHING if self._step_s else 1.0)
        self._metrics.observe_step(step_s, len(self._slots), self._engine.num_slots)
        await self.report()
        return full

    async def _retire(self, full: Sequence[int]) -> list[_RunningJob]:
        """Take full images out of the engine; return the jobs of which they were the last."""
        if not full:
            return []
        started = time.monotonic()
        all_pixels = await self._thread.call(partial(self._engine.decode, full))
        decode_s = time.monotonic() - started
        images = [self._slots.pop(slot) for slot in full]
        for image, pixels in zip(images, all_pixels, strict=True):
            image.running.encodings[image.index] = self._encode(image, pixels)
        concerned = {image.job_id: image.running for image in images}
        for running in concerned.values():
            running.decode_s += decode_s
        await self.report()
        return [self._jobs.pop(i) for i, running in concerned.items() if running.is_full]

    def _encode(self, image: _Image, pixels: Pixels) -> asyncio.Future[tuple[bytes, float]]:
        label = self._info.class_labels[image.request.class_id]
        text = provenance(self._info.name, self._info.revision, label, image.request)
        output_format = image.running.claim.job.output_format
        return asyncio.get_running_loop().run_in_executor(
            self._encoders, _encode_timed, pixels, output_format, text
        )

    async def _complete(self, running: _RunningJob) -> None:
        claim, generation_s = running.claim, time.monotonic() - running.claimed_at
        futures = [running.encodings[i] for i in range(len(claim.job.images))]
        await asyncio.wait(futures)
        if error := next((e for future in futures if (e := future.exception())), None):
            logger.error("encoding failed", exc_info=error, extra={"job": claim.job.id})
            await self._queue.fail(claim, f"encoding failed: {type(error).__name__}")
            return
        images, seconds = zip(*(future.result() for future in futures), strict=True)
        timings = JobTimings(
            queue_s=claim.queue_s,
            generation_s=generation_s - running.decode_s,
            decode_s=running.decode_s,
            encode_s=sum(seconds),
        )
        if await self._queue.complete(claim, JobResult(images=images, timings=timings)):
            self._metrics.observe_job(timings, len(images))

    async def _fail_all(self, error: Exception) -> None:
        """Fail every job that the engine holds and free its slots."""
        logger.error("a step failed, and its %d jobs with it", len(self._jobs), exc_info=error)
        failed, self._jobs = self._jobs, {}
        self._waiting.clear()
        for running in failed.values():
            await self._queue.fail(running.claim, f"the engine failed: {type(error).__name__}")
        await self._free(list(self._slots))

    async def _free(self, slots: Sequence[int]) -> None:
        for slot in slots:
            await self._thread.call(partial(self._engine.cancel, slot))
            del self._slots[slot]
        await self.report()

    async def report(self) -> None:
        """Tell the queue how this worker is."""
        await self._queue.report(
            WorkerStatus(
                name=self._name,
                phase="ready",
                num_slots=self._engine.num_slots,
                free_slots=self._engine.free_slots,
                step_s=self._step_s,
            )
        )


def _encode_timed(
    pixels: Pixels, output_format: OutputFormat, text: dict[str, str]
) -> tuple[bytes, float]:
    started = time.monotonic()
    return encode(pixels, output_format, text), time.monotonic() - started
