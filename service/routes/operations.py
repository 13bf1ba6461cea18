"""What operators ask: probes, metrics, version, documentation. Never behind a key."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, RedirectResponse

from service import __version__
from service.intake import Intake
from service.metrics import CONTENT_TYPE
from service.refusals import JsonRoute
from service.schemas import Health, Version, error_responses

DOCS_PAGE = Path(__file__).parents[1] / "web" / "docs.html"


class OperationsRoutes:
    """Tells how the process is."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._models = intake.models

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, tags=["operations"])
        for path in ("/livez", "/startupz"):
            router.get(path, summary="Is the process alive?")(self.live)
        for path in ("/health", "/ping", "/v2/health/live"):
            router.get(path, summary="The same as /livez")(self.live)
        router.get("/readyz", summary="Can it take requests now?", responses=error_responses(503))(
            self.ready
        )
        router.get(
            "/v2/health/ready", summary="The same as /readyz", responses=error_responses(503)
        )(self.ready)
        router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)(
            self.metrics
        )
        router.get("/version", summary="Software and model")(self.version)
        router.get("/docs", include_in_schema=False)(self.docs)
        router.get("/", include_in_schema=False)(self.root)
        return router

    async def live(self) -> Health:
        return Health(status="live")

    async def ready(self) -> Health:
        self._intake.check_not_draining()
        for served in self._models:
            # A queue of its own machine is ready when it answers; one in memory with its worker.
            if self._intake.settings.redis_url is None:
                await self._intake.check_has_worker(served)
            else:
                await served.queue.workers()
        return Health(status="ready")

    async def metrics(self) -> Response:
        stats = {served.info.name: await served.queue.stats() for served in self._models}
        return Response(self._intake.metrics.render(stats), media_type=CONTENT_TYPE)

    async def version(self) -> Version:
        info = self._models.default.info
        return Version(version=__version__, model=info.name, model_revision=info.revision)

    async def docs(self) -> FileResponse:
        return FileResponse(DOCS_PAGE, media_type="text/html")

    async def root(self) -> RedirectResponse:
        return RedirectResponse("/docs")
