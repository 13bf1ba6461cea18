"""What operators ask: probes, metrics, version."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from service import __version__
from service.errors import NotReady
from service.intake import RETRY_WHEN_LOADED_S, Intake
from service.metrics import CONTENT_TYPE
from service.refusals import JsonRoute
from service.schemas import Health, Version, error_responses
from service.worker_health import WorkerHealth


class OperationsRoutes:
    """Tells how the process is, and its worker, if `health` is that of one."""

    def __init__(self, intake: Intake, health: WorkerHealth | None) -> None:
        self._intake = intake
        self._models = intake.models
        self._health = health

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, tags=["operations"])
        unwell = error_responses(503)
        router.get("/livez", summary="Is the process alive?", responses=unwell)(self.live)
        for path in ("/health", "/ping", "/v2/health/live"):
            router.get(path, summary="The same as /livez", responses=unwell)(self.live)
        router.get("/startupz", summary="Has it started?", responses=unwell)(self.started)
        router.get("/readyz", summary="Can it take requests now?", responses=unwell)(self.ready)
        router.get("/v2/health/ready", summary="The same as /readyz", responses=unwell)(self.ready)
        if self._intake.settings.metrics_port is None:
            router.get(
                "/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse
            )(self.metrics)
        router.get("/version", summary="Software and model")(self.version)
        return router

    async def live(self) -> Health:
        if self._health and (why_not := self._health.why_not_live()):
            raise NotReady(why_not, code="not_live")
        return Health(status="live")

    async def started(self) -> Health:
        if self._health and (why_not := self._health.why_not_started()):
            raise NotReady(why_not, code="not_started")
        return Health(status="started")

    async def ready(self) -> Health:
        self._intake.check_not_draining()
        if self._health and (why_not := self._health.why_not_ready()):
            raise NotReady(why_not, retry_after_s=RETRY_WHEN_LOADED_S)
        for served in self._models:
            await served.queue.workers()  # which says whether the queue answers
        return Health(status="ready")

    async def metrics(self) -> Response:
        text = await self._intake.metrics.scrape(self._models.queues)
        return Response(text, media_type=CONTENT_TYPE)

    async def version(self) -> Version:
        info = await self._models.default.described()
        return Version(version=__version__, model=info.name, model_revision=info.revision)
