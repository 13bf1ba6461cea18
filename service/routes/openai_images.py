"""`/v1/images/generations`: the same images for OpenAI's clients, unmodified.

A translation, both ways, around the same door and the same delivery: the prompt names a class, and
what has no meaning here has no effect, which the answer says.
"""

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request, Response

from model.zoo import ModelInfo
from service.answers import Answering
from service.caller import base_url_of, caller_of
from service.delivery import Delivery, Seen
from service.errors import InvalidRequest
from service.event_stream import Event
from service.headers import IdempotencyKey
from service.intake import Intake
from service.jobs import Job, JobView, KnownJob, PartialImage
from service.negotiation import EVENTS_TYPE
from service.openai_schemas import (
    CompletedEvent,
    ImageData,
    ImageEvent,
    ImagesRequest,
    ImagesResponse,
    PartialImageEvent,
    Usage,
)
from service.outcomes import content_of
from service.refusals import JsonRoute
from service.schemas import GenerationRequest, error_responses
from service.submission import Asking

SAME_FIELDS = (
    "model", "seed", "guidance_scale", "temperature", "unmask_schedule", "order", "output_format",
    "output_compression", "response_format", "partial_images", "priority", "timeout_s",
)  # fmt: skip
OTHER_NAMES = {"class": "prompt", "num_images": "n"}


class OpenAIImageRoutes:
    """Takes requests of OpenAI's clients."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def router(self) -> APIRouter:
        """Return the route."""
        router = APIRouter(route_class=JsonRoute, tags=["openai"])
        router.post(
            "/v1/images/generations",
            summary="Generate images, for OpenAI's clients",
            response_model=ImagesResponse,
            responses={
                200: {"content": {EVENTS_TYPE: {}}},
                **error_responses(400, 404, 408, 410, 413, 415, 422, 429, 500, 503, 504),
            },
        )(self.generate)
        return router

    async def generate(
        self, body: ImagesRequest, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Make images of the class that the prompt names."""
        served = self._intake.models.find(body.model)
        request.state.model_name = served.info.name
        _check(body, served.info)
        asking = Asking(
            caller=caller_of(request),
            shows_partials=body.stream,
            idempotency_key=idempotency_key,
            warnings=tuple(f"{name} has no effect" for name in body.ignored),
        )
        try:
            job = await self._intake.submit(served, _translate(body), asking)
        except InvalidRequest as error:
            error.param = OTHER_NAMES.get(error.param or "", error.param)
            raise
        delivery = Delivery(served, self._intake, job, is_kept=idempotency_key is not None)
        telling = _Telling(Answering(served.info, base_url_of(request, self._intake.settings)))
        if body.stream:
            return delivery.events(telling, Seen())
        known = await delivery.result(request.receive)
        text = await asyncio.to_thread(telling.whole, known)
        return Response(text, media_type="application/json")


def _check(body: ImagesRequest, info: ModelInfo) -> None:
    """Raise InvalidRequest for what OpenAI's clients can ask for and this model cannot make."""
    size = size_of(info)
    if body.size not in ("auto", size):
        raise InvalidRequest(f"{info.name} makes images of {size}; leave size out", param="size")
    if body.background == "transparent":
        raise InvalidRequest("images are opaque; leave background out", param="background")
    if body.stream and body.response_format == "url":
        raise InvalidRequest("a stream carries the images", param="response_format")


def _translate(body: ImagesRequest) -> GenerationRequest:
    """Say the same in our own words."""
    values: dict[str, Any] = {name: getattr(body, name) for name in SAME_FIELDS}
    if body.class_id is None:
        values["class"] = body.prompt
    else:
        values["class_id"] = body.class_id
    return GenerationRequest.model_validate({"num_images": body.n, **values})


def size_of(info: ModelInfo) -> str:
    """Return the size of a model's images, as width x height."""
    return f"{info.tokenizer.image_size}x{info.tokenizer.image_size}"


class _Telling:
    """Answers and events in OpenAI's words."""

    is_resumable = False

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._info = answering.info

    def whole(self, known: KnownJob) -> bytes:
        """Answer with all images at once."""
        generation = self._answering.generation(known)
        answer = ImagesResponse(
            created=generation.created,
            output_format=generation.output_format,
            size=generation.size,
            data=[
                ImageData(
                    b64_json=image.b64_json,
                    url=image.url,
                    revised_prompt=image.class_name,
                    class_id=image.class_id,
                    seed=image.seed,
                )
                for image in generation.data
            ],
            usage=Usage.of(len(generation.data), known.job.num_steps),
            id=generation.id,
            model=generation.model,
            warnings=generation.warnings,
        )
        return answer.model_dump_json().encode()

    def progress(self, job: Job, view: JobView) -> None:
        """Say nothing: these clients know no such event."""

    def partial(self, job: Job, partial: PartialImage) -> Event:
        """Show what is drawn of an image; each image's previews are counted apart."""
        num_tokens = round(partial.share * job.num_steps)
        event = PartialImageEvent(
            **self._of_image(job, partial.index, partial.content),
            partial_image_index=num_tokens * (job.partial_images + 1) // job.num_steps - 1,
        )
        return _event(event, event.type)

    def completed(self, known: KnownJob) -> list[Event]:
        """Hand over the images, one by one."""
        job = known.job
        events = [
            CompletedEvent(
                **self._of_image(job, index, content_of(known, index)),
                usage=Usage.of(1, job.num_steps),
                seed=request.seed,
            )
            for index, request in enumerate(job.images)
        ]
        return [_event(event, event.type) for event in events]

    def _of_image(self, job: Job, index: int, content: bytes) -> dict[str, Any]:
        return {
            "b64_json": base64.b64encode(content).decode(),
            "created_at": int(job.created_at),
            "output_format": job.output_format,
            "size": size_of(self._info),
            "image_index": index,
        }


def _event(event: ImageEvent, name: str) -> Event:
    return name, event.model_dump_json().encode()
