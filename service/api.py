"""The HTTP interface: validates requests, submits jobs, waits for them, answers.

First and last in a request's life. It knows the queue and a description of the model, never the
model: what runs the jobs may be a thread of this process or another machine. A request waits for
its job and for its client at once, so that a client that leaves frees its slots.
"""

import asyncio
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.types import ASGIApp

from service import __version__, refusals
from service.answers import class_entry, generation_json, image_response, model_card
from service.delivery import RETRY_ELSEWHERE_S, Delivery
from service.errors import Draining, NotReady, ServiceError
from service.jobs import Job, JobResult
from service.metrics import CONTENT_TYPE, Metrics
from service.middleware import BodyLimit, Observation
from service.negotiation import EVENTS_TYPE, OFFERED, Answer, choose_answer, raw_format
from service.openapi import Application
from service.schemas import (
    ClassList,
    Generation,
    GenerationRequest,
    Health,
    ModelCard,
    ModelList,
    Version,
    error_responses,
)
from service.served_models import ServedModel, ServedModels
from service.settings import Settings
from service.submission import check_is_single, make_job

DOCS_PAGE = Path(__file__).parent / "web" / "docs.html"
RETRY_WHEN_LOADED_S = 2.0


class Api:
    """The handlers of all routes, and the application that they make."""

    def __init__(self, *, settings: Settings, models: ServedModels, metrics: Metrics) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._created = int(time.time())
        self._is_draining = False
        app = Application(
            title="bar-serve",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        app.include_router(self._routes())
        refusals.install(app)
        limited = BodyLimit(app, settings.max_body_bytes)
        self.app: ASGIApp = Observation(limited, metrics)

    def drain(self) -> None:
        """Refuse what comes from now on; what was accepted is answered."""
        self._is_draining = True

    def _routes(self) -> APIRouter:
        router = APIRouter(route_class=refusals.JsonRoute, redirect_slashes=False)
        router.post(
            "/v1/generations",
            summary="Generate images",
            response_model=Generation,
            responses={
                200: {"content": {media_type: {} for media_type in OFFERED.values()}},
                **error_responses(400, 404, 406, 413, 415, 429, 500, 503, 504),
            },
        )(self.generate)
        router.get("/v1/models", summary="List the served models")(self.models)
        router.get(
            "/v1/models/{model_id}",
            summary="Describe a served model",
            responses=error_responses(404),
        )(self.model)
        router.get(
            "/v1/classes",
            summary="List or search the classes of a model",
            responses=error_responses(400, 404),
        )(self.classes)
        router.get("/livez", summary="Is the process alive?")(self.livez)
        router.get("/readyz", summary="Can it take requests now?", responses=error_responses(503))(
            self.readyz
        )
        router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)(
            self.metrics
        )
        router.get("/version", summary="Software and model")(self.version)
        router.get("/docs", include_in_schema=False)(self.docs)
        router.get("/", include_in_schema=False)(self.root)
        return router

    async def generate(self, body: GenerationRequest, request: Request) -> Response:
        """Make images of a class and answer with them.

        The Accept header chooses the answer: JSON, the raw bytes of one image, or server-sent
        events: `progress`, `partial_image`, and `completed` with the JSON answer or `error`.
        """
        started = time.monotonic()
        answer = choose_answer(request.headers.get("accept"), body.output_format)
        served = self._models.find(body.model)
        job = await self._submit(served, body, answer)
        delivery = Delivery(served.info.name, served.queue, self._metrics)

        def render(result: JobResult) -> bytes:
            return generation_json(
                job,
                result,
                served.info,
                created=int(time.time()),
                total_s=time.monotonic() - started,
                metadata=body.metadata,
                warnings=_warnings(request, body, answer),
            )

        if answer == "events":
            return delivery.events(job, render)
        result = await delivery.result(job, request.receive)
        if answer == "json":
            text = await asyncio.to_thread(render, result)
            return Response(text, media_type="application/json")
        return image_response(job, result, served.info)

    async def models(self) -> ModelList:
        return ModelList(data=[await self._model_card(served) for served in self._models])

    async def model(self, model_id: str) -> ModelCard:
        return await self._model_card(self._models.find(model_id))

    async def classes(
        self,
        q: Annotated[str, Query(max_length=100, description="Index, WordNet id or name.")] = "",
        model: Annotated[str | None, Query(description="Id of a served model.")] = None,
        limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
    ) -> ClassList:
        labels = self._models.find(model).info.class_labels
        found = labels.search(q, limit) if q.strip() else labels[:limit]
        return ClassList(data=[class_entry(label) for label in found])

    async def livez(self) -> Health:
        return Health(status="live")

    async def readyz(self) -> Health:
        self._check_not_draining()
        for served in self._models:
            # A queue of its own machine is ready when it answers; one in memory with its worker.
            if await served.ready_worker() is None and self._settings.redis_url is None:
                raise _no_worker(served)
        return Health(status="ready")

    async def metrics(self) -> Response:
        stats = {served.info.name: await served.queue.stats() for served in self._models}
        return Response(self._metrics.render(stats), media_type=CONTENT_TYPE)

    async def version(self) -> Version:
        info = self._models.default.info
        return Version(version=__version__, model=info.name, model_revision=info.revision)

    async def docs(self) -> FileResponse:
        return FileResponse(DOCS_PAGE, media_type="text/html")

    async def root(self) -> RedirectResponse:
        return RedirectResponse("/docs")

    async def _submit(self, served: ServedModel, body: GenerationRequest, answer: Answer) -> Job:
        raw = raw_format(answer)
        try:
            job = make_job(
                body,
                served.info,
                self._settings,
                raw or body.output_format or "png",
                with_partials=answer == "events",
            )
            if raw:
                check_is_single(job)
            self._check_not_draining()
            if await served.ready_worker() is None:
                raise _no_worker(served)
            await served.queue.admit(job)
        except ServiceError as error:
            self._metrics.count_rejection(served.info.name, error.code)
            raise
        return job

    def _check_not_draining(self) -> None:
        if self._is_draining:
            raise Draining("this server is shutting down", retry_after_s=RETRY_ELSEWHERE_S)

    async def _model_card(self, served: ServedModel) -> ModelCard:
        worker = await served.ready_worker()
        return model_card(served.info, self._settings, self._created, worker)


def _no_worker(served: ServedModel) -> NotReady:
    return NotReady(
        f"no worker is ready for the model {served.info.name}: it may be loading",
        retry_after_s=RETRY_WHEN_LOADED_S,
    )


def _warnings(request: Request, body: GenerationRequest, answer: Answer) -> list[str]:
    warnings = []
    if "respond-async" in request.headers.get("prefer", "").lower():
        warnings.append(
            "Prefer: respond-async has no effect: the request was answered synchronously"
        )
    if body.partial_images and answer != "events":
        warnings.append(f"partial_images has no effect without Accept: {EVENTS_TYPE}")
    return warnings
