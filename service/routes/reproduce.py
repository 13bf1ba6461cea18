"""`/v1/reproduce`: an image that was made here, made again and compared."""

import asyncio

from fastapi import APIRouter, Request, Response

from service.answers import Answering
from service.caller import base_url_of, caller_of
from service.delivery import Delivery
from service.errors import InvalidRequest, UnsupportedMediaType
from service.headers import joined
from service.images import MEDIA_TYPES, Pixels
from service.intake import Intake
from service.jobs import KnownJob
from service.negotiation import OFFERED as ALL_OFFERED
from service.negotiation import Answer, choose_answer
from service.outcomes import content_of
from service.png_reader import read_png
from service.provenance import PREFIX, REVISION
from service.refusals import JsonRoute
from service.reproduction import Original, compare
from service.schemas import ReproducedGeneration, Reproduction, error_responses
from service.submission import Asking

REPRODUCE = "/v1/reproduce"
PNG_TYPE = MEDIA_TYPES["png"]
OFFERED: dict[Answer, str] = {answer: ALL_OFFERED[answer] for answer in ("json", "png")}


class ReproductionRoutes:
    """Takes images that were made here, and answers with the same."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, tags=["generations"])
        router.post(
            REPRODUCE,
            summary="Make an image again, and compare every pixel",
            response_model=ReproducedGeneration,
            responses={
                200: {"content": {PNG_TYPE: {}}, "headers": _HEADERS},
                **error_responses(400, 404, 406, 408, 413, 415, 429, 500, 503, 504),
            },
            openapi_extra={"requestBody": _BODY},
        )(self.reproduce)
        return router

    async def reproduce(self, request: Request) -> Response:
        """Read from a PNG how it was made, make the image again and say whether every pixel is the
        same.

        The body is the PNG. The Accept header chooses the answer: JSON, or the new PNG with the
        verdict in the header `X-Pixels-Matched`.
        """
        answer = choose_answer(joined(request, "accept"), "png", OFFERED)
        _check_type(request.headers.get("content-type", ""))
        original = await asyncio.to_thread(Original.read, await request.body())
        _check_is_single(original)
        served = self._intake.models.find(original.record.model)
        request.state.model_name = served.info.name
        info = await served.described()
        body = original.request_to(info)
        pixels = await asyncio.to_thread(original.pixels_of, info)
        asking = Asking(caller=caller_of(request), output_format="png", is_single=True)
        job = await self._intake.submit(served, body, asking)
        delivery = Delivery(served, self._intake, job, is_kept=False)
        known = await delivery.result(request.receive)
        answering = Answering(info, base_url_of(request, self._intake.settings))
        verdict = await asyncio.to_thread(_verdict, original, pixels, content_of(known))
        if answer == "png":
            response = answering.image(known)
            response.headers["X-Pixels-Matched"] = str(verdict.matched).lower()
            return response
        text = await asyncio.to_thread(_render, answering, known, verdict)
        return Response(text, media_type=OFFERED["json"])


def _check_type(declared: str) -> None:
    if (media_type := declared.partition(";")[0].strip().lower()) != PNG_TYPE:
        reason = (
            "JPEG and WebP hold no exact pixels"
            if media_type in MEDIA_TYPES.values()
            else f"with the header Content-Type: {PNG_TYPE}"
        )
        raise UnsupportedMediaType(f"the body must be a PNG: {reason}")


def _check_is_single(original: Original) -> None:
    if (count := original.record.num_images) > 1:
        raise InvalidRequest(
            f"the PNG is a sheet of {count} images, and only one is made again at a time; "
            "`bar reproduce` takes sheets"
        )


def _verdict(original: Original, pixels: Pixels, content: bytes) -> Reproduction:
    """Compare the original's `pixels` with the PNG that a worker has made."""
    height, width, _ = pixels.shape
    again = read_png(content, PREFIX)
    comparison = compare(pixels, again.pixels(width, height))
    return Reproduction(
        matched=comparison.matched,
        differing_pixels=comparison.differing_pixels,
        largest_difference=comparison.largest_difference,
        # Its own word: while a model is being replaced, not every worker has the same.
        revision_matches=again.texts.get(REVISION) == original.record.revision,
    )


def _render(answering: Answering, known: KnownJob, verdict: Reproduction) -> bytes:
    answered = answering.generation(known)
    return ReproducedGeneration(**dict(answered), reproduction=verdict).model_dump_json().encode()


_BODY = {
    "required": True,
    "description": "A PNG that was made here, its text chunks as they were.",
    "content": {PNG_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_HEADERS = {
    "X-Pixels-Matched": {
        "description": "true or false; where the answer is a PNG.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    }
}
