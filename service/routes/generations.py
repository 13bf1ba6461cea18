"""`/v1/generations`: images of a class, for clients that wait and for clients that come back.

A request becomes a job; how it is answered is chosen by headers. What is asked about a job later is
answered by any API of its queue, to its owner alone.
"""

import asyncio
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from service.answers import Answering, GenerationEvents, path_of
from service.caller import base_url_of, caller_of
from service.delivery import Delivery, Seen, job_lost
from service.errors import NotFound
from service.headers import IdempotencyKey, Preferred, joined
from service.intake import Intake
from service.jobs import JobState, KnownJob
from service.negotiation import EVENTS_TYPE, OFFERED, Answer, choose_answer, raw_format
from service.outcomes import result_of
from service.preferences import Preference
from service.refusals import JsonRoute
from service.schemas import (
    Generation,
    GenerationList,
    GenerationRequest,
    Status,
    error_responses,
)
from service.served_models import JOB_ID, FoundJob, unknown_job
from service.submission import Asking

MAX_WAIT_S = 60.0  # proxies close connections that are quiet for longer

Responses = dict[int | str, dict[str, Any]]

MADE: Responses = {
    200: {"content": {media_type: {} for media_type in OFFERED.values()}},
    202: {"model": Generation, "description": "Accepted; Location says where it is."},
    **error_responses(400, 404, 406, 408, 410, 413, 415, 422, 429, 500, 503, 504),
}
STOPPED: Responses = {
    202: {"model": Generation, "description": "It is stopped."},
    **error_responses(404, 503),
}

JobId = Annotated[str, Path(description="The id of a generation.")]


class GenerationRoutes:
    """Takes requests for images, answers them, and tells how they are."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._models = intake.models

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/v1/generations", route_class=JsonRoute, tags=["generations"])
        router.post("", summary="Generate images", response_model=Generation, responses=MADE)(
            self.generate
        )
        router.put(
            "/{job_id}",
            summary="Generate images, once under this id",
            response_model=Generation,
            responses=MADE,
        )(self.put)
        router.get("", summary="List your generations", responses=error_responses(400, 404))(
            self.list_owned
        )
        router.get(
            "/{job_id}",
            summary="How a generation is",
            response_model=Generation,
            responses=error_responses(400, 404, 503),
        )(self.describe)
        router.get(
            "/{job_id}/content",
            summary="The bytes of an image",
            response_class=Response,
            responses={
                200: {"content": {OFFERED[kind]: {} for kind in ("png", "jpeg", "webp")}},
                304: {"description": "If-None-Match names this content."},
                **error_responses(400, 404, 410, 503),
            },
        )(self.content)
        router.get(
            "/{job_id}/events",
            summary="Follow a generation",
            response_class=Response,
            responses={200: {"content": {EVENTS_TYPE: {}}}, **error_responses(404, 503)},
        )(self.events)
        router.post(
            "/{job_id}/cancel",
            summary="Stop a generation",
            response_model=Generation,
            responses=STOPPED,
        )(self.cancel)
        router.delete(
            "/{job_id}", summary="Stop a generation", response_model=Generation, responses=STOPPED
        )(self.cancel)
        return router

    async def generate(
        self,
        body: GenerationRequest,
        request: Request,
        preference: Preferred,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Make images of a class and answer with them.

        The Accept header chooses the answer: JSON, the raw bytes of one image, or server-sent
        events: `progress`, `partial_image`, and `completed` with the JSON answer or `error`. A
        client that leaves cancels its job, unless it sent an idempotency key or a preference.
        """
        return await self._make(body, request, preference, idempotency_key=idempotency_key)

    async def put(
        self,
        job_id: Annotated[str, Path(pattern=JOB_ID, description="An id of your own.")],
        body: GenerationRequest,
        request: Request,
        preference: Preferred,
    ) -> Response:
        """Make images, once: repeated under its id, a request attaches to the job in progress."""
        return await self._make(body, request, preference, job_id=job_id)

    async def _make(
        self,
        body: GenerationRequest,
        request: Request,
        preference: Preference,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Response:
        answer = choose_answer(joined(request, "accept"), body.output_format)
        asking = Asking(
            caller=caller_of(request),
            output_format=raw_format(answer),
            is_awaited=not preference.is_async,
            is_single=raw_format(answer) is not None,
            shows_partials=answer == "events" or preference.is_async,
            idempotency_key=idempotency_key,
            job_id=job_id,
            warnings=_warnings(body, shows_partials=answer == "events" or preference.is_async),
        )
        served = self._models.find(body.model)
        request.state.model_name = served.info.name
        job = await self._intake.submit(served, body, asking)
        is_kept = preference.is_async or asking.repeats_as is not None
        delivery = Delivery(served, self._intake, job, is_kept=is_kept)
        info = await served.described()
        answering = Answering(info, base_url_of(request, self._intake.settings))
        if answer == "events":
            return delivery.events(GenerationEvents(answering), Seen())
        if preference.wait_s is None:
            return await _answer(await delivery.result(request.receive), answer, answering)
        known = await delivery.within(request.receive, min(preference.wait_s, job.timeout_s))
        if known is None:
            raise job_lost()
        if known.view.outcome:
            delivery.check_success(known.view.outcome)
            reply = await _answer(known, answer, answering)
        else:
            reply = await _answer(known, "json", answering, status=202)
            reply.headers["Location"] = path_of(job)
        reply.headers["Preference-Applied"] = preference.applied
        return reply

    async def list_owned(
        self,
        request: Request,
        status: Annotated[Status | None, Query(description="Only those.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[
            str | None, Query(description="Id of the last one seen; older ones follow.")
        ] = None,
    ) -> GenerationList:
        """List the caller's jobs, the newest first."""
        found = await self._models.jobs_of(
            caller_of(request).owner, JobState(status) if status else None, after, limit + 1
        )
        data = [self._answering(job, request).generation(job.known) for job in found[:limit]]
        return GenerationList(data=data, has_more=len(found) > limit)

    async def describe(
        self,
        job_id: JobId,
        request: Request,
        wait: Annotated[
            float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for its end.")
        ] = 0.0,
    ) -> Response:
        """Tell how a generation is, with its images once it has succeeded."""
        found = await self._find(job_id, request)
        delivery = Delivery(found.served, self._intake, found.known.job, is_kept=True)
        known = await delivery.within(request.receive, wait)
        if known is None:
            raise unknown_job()
        return await _answer(known, "json", self._answering(found, request))

    async def content(
        self,
        job_id: JobId,
        request: Request,
        index: Annotated[int, Query(ge=0, description="Which of its images.")] = 0,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Answer with the bytes of an image; they never change."""
        found = await self._find(job_id, request, with_result=True)
        known, outcome = found.known, found.known.view.outcome
        if outcome is None:
            raise NotFound(
                f"the generation is {known.view.state}: it has no content yet", code="not_ended",
                retry_after_s=known.view.eta_s,
            )  # fmt: skip
        images = result_of(known.job, outcome).images
        if index >= len(images):
            raise NotFound(f"the generation has {len(images)} images, and no index {index}")
        etag = f'"{hashlib.sha256(images[index]).hexdigest()}"'
        headers = {
            "ETag": etag,
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        if _names(if_none_match, etag):
            return Response(status_code=304, headers=headers)
        reply = self._answering(found, request).image(known, index)
        reply.headers.update(headers)
        return reply

    async def events(
        self,
        job_id: JobId,
        request: Request,
        last_event_id: Annotated[
            str | None, Header(description="Where a broken stream goes on.")
        ] = None,
    ) -> Response:
        """Follow a generation as server-sent events; to leave does not stop it."""
        found = await self._find(job_id, request)
        delivery = Delivery(found.served, self._intake, found.known.job, is_kept=True)
        answering = self._answering(found, request)
        return delivery.events(GenerationEvents(answering), Seen.read(last_event_id))

    async def cancel(self, job_id: JobId, request: Request) -> Response:
        """Stop a generation for good: 202, or 200 if it had ended already."""
        found = await self._find(job_id, request)
        phase = await found.served.queue.cancel(job_id)
        if phase:
            model = found.served.info.name
            self._intake.metrics.count_cancellation(model, phase, "request")
            found = await self._find(job_id, request)
        reply = await _answer(found.known, "json", self._answering(found, request))
        reply.status_code = 202 if phase else 200
        return reply

    async def _find(self, job_id: str, request: Request, *, with_result: bool = False) -> FoundJob:
        return await self._models.find_job(
            job_id, caller_of(request).owner, with_result=with_result
        )

    def _answering(self, found: FoundJob, request: Request) -> Answering:
        return Answering(found.served.info, base_url_of(request, self._intake.settings))


async def _answer(
    known: KnownJob, answer: Answer, answering: Answering, status: int = 200
) -> Response:
    if answer != "json":
        return answering.image(known)
    text = await asyncio.to_thread(answering.generation_json, known)
    return Response(text, status, media_type="application/json")


def _warnings(body: GenerationRequest, *, shows_partials: bool) -> tuple[str, ...]:
    if body.partial_images and not shows_partials:
        return (f"partial_images has no effect without Accept: {EVENTS_TYPE}",)
    return ()


def _names(if_none_match: str | None, etag: str) -> bool:
    named = [part.strip().removeprefix("W/") for part in (if_none_match or "").split(",")]
    return etag in named or "*" in named
