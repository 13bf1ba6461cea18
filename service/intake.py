"""The door to the queues: a request becomes a job there, or is refused and counted.

Between the routes, which know how a request arrived and is answered, and the queue. All ways in,
our own and the OpenAI-compatible one, come through here, so that each rule of admission has one
place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Draining, NotReady, ServiceError
from service.jobs import Job
from service.metrics import Metrics
from service.served_models import ServedModel, ServedModels
from service.settings import Settings

RETRY_ELSEWHERE_S = 1.0  # another replica takes over
RETRY_WHEN_LOADED_S = 2.0


class Intake:
    """Admits jobs to the queues of the served models, until it drains."""

    def __init__(self, settings: Settings, models: ServedModels, metrics: Metrics) -> None:
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self._is_draining = False

    def drain(self) -> None:
        """Refuse what comes from now on; what was accepted is answered."""
        self._is_draining = True

    def check_not_draining(self) -> None:
        """Raise Draining once the process is shutting down."""
        if self._is_draining:
            raise Draining("this server is shutting down", retry_after_s=RETRY_ELSEWHERE_S)

    async def submit(self, served: ServedModel, make: Callable[[], Job]) -> Job:
        """Queue the job that `make` makes of a request.

        Raises: what `make` raises, Draining, NotReady and what the queue refuses with.
        """
        with self._counting_refusals(served.info.name):
            job = make()
            self.check_not_draining()
            await self.check_has_worker(served)
            await served.queue.admit(job)
        return job

    async def check_has_worker(self, served: ServedModel) -> None:
        """Raise NotReady unless a worker takes jobs of the model."""
        if await served.ready_worker() is None:
            raise NotReady(
                f"no worker is ready for the model {served.info.name}: it may be loading",
                retry_after_s=RETRY_WHEN_LOADED_S,
            )

    @contextmanager
    def _counting_refusals(self, model: str) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self.metrics.count_rejection(model, error.code)
            raise
