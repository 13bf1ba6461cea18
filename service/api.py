"""The HTTP interface: the application, made of its routes and of what surrounds every request.

First and last in a request's life. It knows the queues and a description of each model, never the
models: what runs the jobs may be a thread of this process or another machine.
"""

from starlette.types import ASGIApp

from service import __version__, refusals
from service.auth import Authentication
from service.intake import Intake
from service.keyring import Keyring
from service.metrics import Metrics
from service.middleware import BodyLimit, Observation
from service.openapi import Application
from service.playground import Playground
from service.rate_limit import RateLimit, make_limiter
from service.routes.generations import GenerationRoutes
from service.routes.models import ModelRoutes
from service.routes.openai_images import OpenAIImageRoutes
from service.routes.operations import OperationsRoutes
from service.routes.reproduce import REPRODUCE, ReproductionRoutes
from service.served_models import ServedModels
from service.settings import Settings
from service.tracing import Traces
from service.worker_health import WorkerHealth


class Api:
    """The application, and its door, which closes when the process ends."""

    def __init__(
        self,
        *,
        settings: Settings,
        models: ServedModels,
        metrics: Metrics,
        traces: Traces,
        health: WorkerHealth | None = None,
    ) -> None:
        """Build the application; `health` is that of a worker in the same process.

        Raises: StartupError if the API keys cannot be used.
        """
        self._intake = intake = Intake(settings, models, metrics)
        app = Application(
            title="bar-serve",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        for routes in (
            GenerationRoutes(intake),
            OpenAIImageRoutes(intake),
            ReproductionRoutes(intake),
            ModelRoutes(intake),
            OperationsRoutes(intake, health),
            Playground(),
        ):
            app.include_router(routes.router())
        refusals.install(app)
        limited = BodyLimit(app, settings.max_body_bytes, {REPRODUCE: settings.max_reproduce_bytes})
        self._limiter = make_limiter(settings)
        metered = RateLimit(limited, self._limiter, settings.requests_per_minute, metrics)
        guarded = Authentication(metered, settings, Keyring.of(settings), metrics)
        self.app: ASGIApp = Observation(guarded, metrics, traces)

    def drain(self) -> None:
        """Refuse what comes from now on; what was accepted is answered."""
        self._intake.drain()

    async def close(self) -> None:
        """Let go of connections; nothing is answered afterwards."""
        await self._limiter.close()
