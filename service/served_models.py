"""The models that an API serves: each has a queue of its own, and requests are routed by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.zoo import ModelInfo
from service.errors import NotFound
from service.job_queue import JobQueue
from service.jobs import WorkerStatus


@dataclass(frozen=True)
class ServedModel:
    """A model and the queue of its jobs."""

    info: ModelInfo
    queue: JobQueue

    async def ready_worker(self) -> WorkerStatus | None:
        """Return a worker that takes jobs of this model, None if there is none."""
        workers = await self.queue.workers()
        return next((worker for worker in workers if worker.phase == "ready"), None)


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
