"""The models that an API serves: each has a queue of its own, and requests are routed by name.

Jobs are found by id alone, in whichever queue they are, and only by their owner: to anyone else
they do not exist.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from model.zoo import ModelInfo
from service.errors import NotFound, QueueUnavailable
from service.job_queue import JobQueue
from service.jobs import JobState, KnownJob, WorkerStatus

JOB_ID = r"^[A-Za-z0-9_-]{8,64}$"


@dataclass
class ServedModel:
    """A model and the queue of its jobs. Where its files are on other machines only, its revision
    is what its workers say."""

    info: ModelInfo
    queue: JobQueue

    def __post_init__(self) -> None:
        self._has_files = bool(self.info.revision)

    async def ready_worker(self) -> WorkerStatus | None:
        """Return a worker that takes jobs of this model, None if there is none."""
        workers = await self.queue.workers()
        ready = next((worker for worker in workers if worker.phase == "ready"), None)
        if ready and ready.revision and not self._has_files:
            self.info = replace(self.info, revision=ready.revision)
        return ready

    async def described(self) -> ModelInfo:
        """Return what is known of the model now."""
        if not self.info.revision:
            with suppress(QueueUnavailable):
                await self.ready_worker()
        return self.info


@dataclass(frozen=True)
class FoundJob:
    """A job and the model that it is of."""

    served: ServedModel
    known: KnownJob

    @property
    def place(self) -> tuple[float, str]:
        """Where it stands among its owner's jobs."""
        return self.known.job.created_at, self.known.job.id


class ServedModels:
    """All that one API serves; the first is what requests get that name none."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {served.info.name: served for served in models}
        self.default = models[0]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def queues(self) -> dict[str, JobQueue]:
        """The queue of each model, by name."""
        return {name: served.queue for name, served in self._models.items()}

    def find(self, name: str | None) -> ServedModel:
        """Return the model of that name, the first if there is none.

        Raises: NotFound, with the names that there are.
        """
        if name is None:
            return self.default
        if name not in self._models:
            raise NotFound(
                f"this server does not serve that model; it serves {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    async def find_job(self, job_id: str, owner: str, *, with_result: bool = False) -> FoundJob:
        """Return the job of that id, if it is the owner's.

        Raises: NotFound, also if it is somebody else's.
        """
        if re.fullmatch(JOB_ID, job_id):
            for served in self:
                known = await served.queue.find(job_id, with_result=with_result)
                if known and known.job.owner == owner:
                    await served.described()
                    return FoundJob(served, known)
        raise unknown_job()

    async def jobs_of(
        self, owner: str, state: JobState | None, after: str | None, limit: int
    ) -> list[FoundJob]:
        """Return the owner's jobs in `state`, None for any, older than the job `after`; the newest
        first.

        Raises: NotFound if there is no job `after`.
        """
        before = (await self.find_job(after, owner)).place if after else None
        models = list(self)
        pages = await asyncio.gather(
            *(
                served.queue.jobs_of(owner, state=state, before=before, limit=limit)
                for served in models
            )
        )
        found = [
            FoundJob(served, known)
            for served, page in zip(models, pages, strict=True)
            for known in page
        ]
        return sorted(found, key=lambda job: job.place, reverse=True)[:limit]


def unknown_job() -> NotFound:
    """Return the refusal of an id that stands for no job of the caller's."""
    return NotFound("there is no such generation; ended ones are kept for a while only")
