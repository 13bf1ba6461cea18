"""`/v1/generations`: images of a class."""

import asyncio
import time

from fastapi import APIRouter, Request, Response

from service.answers import generation, image_response
from service.delivery import Delivery
from service.intake import Intake
from service.jobs import JobResult
from service.negotiation import EVENTS_TYPE, OFFERED, Answer, choose_answer, raw_format
from service.refusals import JsonRoute
from service.schemas import Generation, GenerationRequest, error_responses
from service.submission import check_is_single, make_job


class GenerationRoutes:
    """Takes requests for images, and answers them."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, tags=["generations"])
        router.post(
            "/v1/generations",
            summary="Generate images",
            response_model=Generation,
            responses={
                200: {"content": {media_type: {} for media_type in OFFERED.values()}},
                **error_responses(400, 404, 406, 413, 415, 429, 500, 503, 504),
            },
        )(self.generate)
        return router

    async def generate(self, body: GenerationRequest, request: Request) -> Response:
        """Make images of a class and answer with them.

        The Accept header chooses the answer: JSON, the raw bytes of one image, or server-sent
        events: `progress`, `partial_image`, and `completed` with the JSON answer or `error`.
        """
        started = time.monotonic()
        answer = choose_answer(request.headers.get("accept"), body.output_format)
        raw = raw_format(answer)
        served = self._intake.models.find(body.model)

        def make():  # type: ignore[no-untyped-def]
            job = make_job(
                body,
                served.info,
                self._intake.settings,
                raw or body.output_format or "png",
                with_partials=answer == "events",
            )
            if raw:
                check_is_single(job)
            return job

        job = await self._intake.submit(served, make)
        delivery = Delivery(served.info.name, served.queue, self._intake.metrics)

        def render(result: JobResult) -> bytes:
            answered = generation(
                job,
                result,
                served.info,
                created=int(time.time()),
                total_s=time.monotonic() - started,
                metadata=body.metadata,
                warnings=_warnings(request, body, answer),
            )
            return answered.model_dump_json().encode()

        if answer == "events":
            return delivery.events(job, render)
        result = await delivery.result(job, request.receive)
        if answer == "json":
            text = await asyncio.to_thread(render, result)
            return Response(text, media_type="application/json")
        return image_response(job, result, served.info)


def _warnings(request: Request, body: GenerationRequest, answer: Answer) -> list[str]:
    warnings = []
    if "respond-async" in request.headers.get("prefer", "").lower():
        warnings.append(
            "Prefer: respond-async has no effect: the request was answered synchronously"
        )
    if body.partial_images and answer != "events":
        warnings.append(f"partial_images has no effect without Accept: {EVENTS_TYPE}")
    return warnings
