"""The door to the queues: a request becomes a job there, or is refused and counted.

Between the routes, which know how a request arrived and is answered, and the queue. All ways in,
our own and the OpenAI-compatible one, come through here, so that each rule of admission has one
place.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Draining, Gone, NotReady, QueueFull, ServiceError
from service.jobs import IdempotencyKey, Job
from service.metrics import Metrics
from service.queue_policy import backlog_s, id_mismatch, key_mismatch
from service.schemas import GenerationRequest
from service.served_models import ServedModel, ServedModels
from service.settings import Settings
from service.submission import Asking, idempotency_of, make_job

RETRY_ELSEWHERE_S = 1.0  # another replica takes over
RETRY_WHEN_LOADED_S = 2.0


class Intake:
    """Admits jobs to the queues of the served models, until it drains."""

    def __init__(self, settings: Settings, models: ServedModels, metrics: Metrics) -> None:
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self.is_draining = False

    def drain(self) -> None:
        """Refuse what comes from now on; what was accepted is answered."""
        self.is_draining = True

    def check_not_draining(self) -> None:
        """Raise Draining once the process is shutting down."""
        if self.is_draining:
            raise shutting_down()

    async def check_has_worker(self, served: ServedModel) -> None:
        """Raise NotReady unless a worker takes jobs of the model."""
        if await served.ready_worker() is None:
            raise NotReady(
                f"no worker is ready for the model {served.info.name}: it may be loading",
                retry_after_s=RETRY_WHEN_LOADED_S,
            )

    async def submit(self, served: ServedModel, body: GenerationRequest, asking: Asking) -> Job:
        """Queue the job that a request asks for; return it, or the job of the request that this
        one repeats.

        Raises: InvalidRequest, Draining, NotReady and what the queue refuses with.
        """
        with self._counting_refusals(served.info.name):
            job = make_job(body, served.info, self.settings, asking)
            key = idempotency_of(body, asking)
            self.check_not_draining()
            await self._check_key(served, job.owner, key)
            if not await self._is_known(served, asking.job_id):
                await self.check_has_worker(served)
                if body.timeout_s is not None:
                    await self._check_deadline(served, job)
            job_id = await served.queue.admit(job, idempotency=key, is_awaited=asking.is_awaited)
        if asking.repeats_as is None:
            return job
        known = await served.queue.find(job_id, with_result=False)
        if known is None:  # it ended, was answered and forgotten in this moment
            raise Gone("the images were made, and are not kept any more", code="result_expired")
        return known.job

    async def _is_known(self, served: ServedModel, job_id: str | None) -> bool:
        """Say whether a client's own id stands for a job already: to attach to that takes no room.

        Raises: IdempotencyMismatch if the job is of another model, whose queue knows nothing of it.
        """
        if job_id is None:
            return False
        for other in self.models:
            if await other.queue.state(job_id) is not None:
                if other is not served:
                    raise id_mismatch()
                return True
        return False

    async def _check_key(self, served: ServedModel, owner: str, key: IdempotencyKey | None) -> None:
        """Raise IdempotencyMismatch if a key stands for a request to another model: that one's
        queue alone knows of it."""
        if key is None:
            return
        others = [other.queue for other in self.models if other is not served]
        if any(await asyncio.gather(*(queue.knows_key(owner, key) for queue in others))):
            raise key_mismatch()

    async def _check_deadline(self, served: ServedModel, job: Job) -> None:
        """Raise QueueFull if what waits already takes longer than the job may."""
        stats = await served.queue.stats()
        wait_s = backlog_s(stats.workers, stats.cost_waiting)
        if job.lead_s <= 0 and wait_s is not None and wait_s > job.timeout_s:
            raise QueueFull(
                f"what waits takes {wait_s:.1f} seconds, and timeout_s allows for "
                f"{job.timeout_s:g}: allow for more, or try again later",
                param="timeout_s",
                code="deadline_unreachable",
                retry_after_s=wait_s - job.timeout_s,
            )

    @contextmanager
    def _counting_refusals(self, model: str) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self.metrics.count_rejection(model, error.code)
            raise


def shutting_down() -> Draining:
    """Return the error that sends a client to another replica."""
    return Draining("this server is shutting down", retry_after_s=RETRY_ELSEWHERE_S)
