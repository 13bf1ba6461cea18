"""From what the service knows to what its answers say: generations, models, classes.

The last stop before the wire. `generation_json` runs in a thread: base64, hashes and text of a few
megabytes would hold up every other request on the event loop.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Response

from model.class_labels import ClassLabel
from model.zoo import ModelInfo
from service.event_stream import Event
from service.images import MEDIA_TYPES
from service.jobs import (
    Job,
    JobResult,
    JobState,
    JobView,
    KnownJob,
    PartialImage,
    WorkerStatus,
)
from service.outcomes import content_of, failure_of
from service.schemas import (
    ClassEntry,
    ErrorDetail,
    GeneratedImage,
    Generation,
    Links,
    ModelCard,
    ModelLimits,
    Numerics,
    SamplingDefaults,
    Status,
    Timings,
)
from service.settings import Settings

STATUSES: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.DEAD: "failed",  # how often it was tried is the operator's concern
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "expired",
}


@dataclass(frozen=True)
class Answering:
    """How answers about one model's jobs are written, for a client that sees us at `base_url`."""

    info: ModelInfo
    base_url: str

    def generation_json(self, known: KnownJob) -> bytes:
        """Return `generation` as JSON text."""
        return self.generation(known).model_dump_json().encode()

    def generation(self, known: KnownJob) -> Generation:
        """Describe a job, with its images if their result was asked for."""
        job, view, size = known.job, known.view, self.info.tokenizer.image_size
        result = view.outcome.result if view.outcome else None
        return Generation(
            id=job.id,
            status=STATUSES[view.state],
            created=int(job.created_at),
            model=self.info.name,
            model_revision=self.info.revision,
            size=f"{size}x{size}",
            output_format=job.output_format,
            progress=1.0 if view.state is JobState.SUCCEEDED else view.share,
            queue_position=view.queue_position,
            eta_s=None if view.eta_s is None else round(view.eta_s, 3),
            data=list(self._images(known, result)),
            timings=_timings(known, result) if result else None,
            gpu_seconds=round(result.timings.device_s, 6) if result else None,
            error=_error(known),
            links=self.links(job),
            metadata=dict(job.metadata),
            warnings=list(job.warnings),
        )

    def links(self, job: Job) -> Links:
        """Return where a job can be asked for."""
        here = f"{self.base_url}{path_of(job)}"
        return Links(self=here, events=f"{here}/events", cancel=f"{here}/cancel")

    def _images(self, known: KnownJob, result: JobResult | None) -> Iterator[GeneratedImage]:
        job = known.job
        has_url = known.view.state is JobState.SUCCEEDED and job.response_format == "url"
        for index, request in enumerate(job.images):
            content = result.images[index] if result else None
            url = f"{self.base_url}{path_of(job)}/content?index={index}"
            yield GeneratedImage(
                index=index,
                class_id=request.class_id,
                class_name=self.info.class_labels[request.class_id].name,
                seed=request.seed,
                b64_json=base64.b64encode(content).decode() if content and not has_url else None,
                url=url if has_url else None,
                sha256=hashlib.sha256(content).hexdigest() if content else None,
            )

    def image(self, known: KnownJob, index: int = 0) -> Response:
        """Answer with the bytes of an image of a succeeded job; headers say what JSON would."""
        job = known.job
        headers = {
            "X-Generation-Id": job.id,
            "X-Model": self.info.name,
            "X-Model-Revision": self.info.revision,
            "X-Class-Id": str(job.images[index].class_id),
            "X-Seed": str(job.images[index].seed),
        }
        content = content_of(known, index)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[job.output_format])


class GenerationEvents:
    """What our own clients are told of a job while it is made."""

    is_resumable = True

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def progress(self, job: Job, view: JobView) -> Event:
        """Tell how far the job is."""
        values = {
            "id": job.id,
            "status": STATUSES[view.state],
            "progress": view.share,
            "eta_s": None if view.eta_s is None else round(view.eta_s, 3),
            "queue_position": view.queue_position,
        }
        return "progress", json.dumps(values).encode()

    def partial(self, job: Job, partial: PartialImage) -> Event:  # noqa: ARG002
        """Show what is drawn of an image."""
        values = {
            "index": partial.index,
            "b64_json": base64.b64encode(partial.content).decode(),
            "progress": partial.share,
        }
        return "partial_image", json.dumps(values).encode()

    def completed(self, known: KnownJob) -> list[Event]:
        """Answer as without events."""
        return [("completed", self._answering.generation_json(known))]


def path_of(job: Job) -> str:
    """Return the path under which a job is found."""
    return f"/v1/generations/{job.id}"


def _timings(known: KnownJob, result: JobResult) -> Timings:
    timings = result.timings
    total_s = timings.queue_s + timings.generation_s + timings.decode_s
    if known.ended_at and known.started_at:  # both by the queue's clock; an API may have another
        total_s = timings.queue_s + known.ended_at - known.started_at
    elif known.ended_at:
        total_s = known.ended_at - known.job.created_at
    return Timings(
        queue_s=round(timings.queue_s, 6),
        generation_s=round(timings.generation_s, 6),
        decode_s=round(timings.decode_s, 6),
        encode_s=round(timings.encode_s, 6),
        total_s=round(max(0.0, total_s), 6),
    )


def _error(known: KnownJob) -> ErrorDetail | None:
    outcome = known.view.outcome
    if outcome is None or outcome.state is JobState.SUCCEEDED:
        return None
    return ErrorDetail(**failure_of(known.job, outcome).envelope()["error"])


def model_card(
    info: ModelInfo, settings: Settings, created: int, worker: WorkerStatus | None
) -> ModelCard:
    """Describe a served model: sizes, defaults, this server's limits, and numerics if a `worker`
    is ready."""
    return ModelCard(
        id=info.name,
        created=created,
        revision=info.revision,
        image_size=info.tokenizer.image_size,
        num_classes=info.generator.num_classes,
        num_steps=info.generator.num_tokens,
        bits_per_token=info.generator.bits_per_token,
        max_rounds=info.generator.max_rounds,
        numerics=_numerics(worker) if worker else None,
        defaults=SamplingDefaults(
            guidance_scale=info.sampling.guidance_scale,
            temperature=info.sampling.temperature,
            unmask_schedule=list(info.sampling.unmask_schedule),
            order=info.sampling.order,
        ),
        limits=ModelLimits(max_images=settings.max_images, max_timeout_s=settings.max_timeout_s),
    )


def _numerics(worker: WorkerStatus) -> Numerics:
    return Numerics(
        precision=worker.precision,
        is_exact=worker.precision != "fp8",
        determinism="bitwise" if worker.is_batch_invariant else "numeric",
    )


def class_entry(label: ClassLabel) -> ClassEntry:
    """Describe a class."""
    return ClassEntry(
        class_id=label.index,
        wordnet_id=label.wordnet_id,
        name=label.name,
        names=list(label.names),
    )
