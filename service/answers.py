"""From what the service knows to what its answers say: generations, models, classes.

The last stop before the wire. `generation` runs in a thread: base64, hashes and text of a few
megabytes would hold up every other request on the event loop.
"""

import base64
import hashlib

from fastapi import Response

from model.class_labels import ClassLabel
from model.zoo import ModelInfo
from service.images import MEDIA_TYPES
from service.jobs import Job, JobResult, WorkerStatus
from service.schemas import (
    ClassEntry,
    GeneratedImage,
    Generation,
    ModelCard,
    ModelLimits,
    Numerics,
    SamplingDefaults,
    Timings,
)
from service.settings import Settings


def generation(
    job: Job,
    result: JobResult,
    info: ModelInfo,
    *,
    created: int,
    total_s: float,
    metadata: dict[str, str],
    warnings: list[str],
) -> Generation:
    """Describe a succeeded job, its images in base64."""
    timings = result.timings
    return Generation(
        id=job.id,
        created=created,
        model=info.name,
        model_revision=info.revision,
        size=f"{info.tokenizer.image_size}x{info.tokenizer.image_size}",
        output_format=job.output_format,
        data=[
            GeneratedImage(
                index=index,
                class_id=request.class_id,
                class_name=info.class_labels[request.class_id].name,
                seed=request.seed,
                b64_json=base64.b64encode(image).decode(),
                sha256=hashlib.sha256(image).hexdigest(),
            )
            for index, (request, image) in enumerate(zip(job.images, result.images, strict=True))
        ],
        timings=Timings(
            queue_s=round(timings.queue_s, 6),
            generation_s=round(timings.generation_s, 6),
            decode_s=round(timings.decode_s, 6),
            encode_s=round(timings.encode_s, 6),
            total_s=round(total_s, 6),
        ),
        metadata=metadata,
        warnings=warnings,
    )


def image_response(job: Job, result: JobResult, info: ModelInfo) -> Response:
    """Answer with the bytes of a job's only image; headers say what JSON would."""
    (request,), (image,) = job.images, result.images
    headers = {
        "X-Generation-Id": job.id,
        "X-Model": info.name,
        "X-Model-Revision": info.revision,
        "X-Class-Id": str(request.class_id),
        "X-Seed": str(request.seed),
    }
    return Response(image, headers=headers, media_type=MEDIA_TYPES[job.output_format])


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
