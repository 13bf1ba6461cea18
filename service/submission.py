"""From a request that has the right form to a job that the served model can run.

Called by the API; the rules that depend on the model or on settings stand here and nowhere else.
Everything that determines the images is fixed here, the seeds included: what is queued is
complete, and the same wherever and whenever it runs.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from model.class_labels import AmbiguousClassError, UnknownClassError
from model.config import MAX_SEED, ImageRequest, SamplingConfig
from model.zoo import ModelInfo
from service.errors import InvalidRequest
from service.jobs import Job, OutputFormat, new_job_id
from service.schemas import GenerationRequest
from service.settings import Settings


def make_job(
    body: GenerationRequest,
    info: ModelInfo,
    settings: Settings,
    output_format: OutputFormat,
    *,
    with_partials: bool = False,
) -> Job:
    """Turn `body` into a job of `info`'s model; `with_partials` if its client can be shown any.

    Raises: InvalidRequest names the field that is wrong.
    """
    class_ids = [class_id for class_id in _class_ids(body, info) for _ in range(body.num_images)]
    _check_count(body, len(class_ids), settings.max_images)
    sampling = _sampling(body, info)
    seed = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
    return Job(
        id=new_job_id(),
        images=tuple(
            ImageRequest(class_id=class_id, seed=(seed + i) % (MAX_SEED + 1), sampling=sampling)
            for i, class_id in enumerate(class_ids)
        ),
        num_steps=info.generator.num_tokens,
        output_format=output_format,
        timeout_s=_timeout_s(body, settings),
        priority=body.priority,
        partial_images=body.partial_images if with_partials else 0,
    )


def check_is_single(job: Job) -> None:
    """Raise InvalidRequest unless the job has one image, which can be answered with raw bytes."""
    if len(job.images) > 1:
        raise InvalidRequest(
            f"a raw {job.output_format} answer holds one image, and {len(job.images)} are asked "
            "for: ask for one, or send Accept: application/json",
            param="num_images",
        )


def _class_ids(body: GenerationRequest, info: ModelInfo) -> Sequence[int]:
    ((param, value),) = body.class_fields.items()
    queries = value if isinstance(value, list) else [value]
    try:
        return [info.class_labels.find(query).index for query in queries]
    except UnknownClassError as error:
        raise InvalidRequest(str(error), param=param, code="unknown_class") from None
    except AmbiguousClassError as error:
        raise InvalidRequest(str(error), param=param, code="ambiguous_class") from None


def _check_count(body: GenerationRequest, count: int, max_images: int) -> None:
    if count > max_images:
        raise InvalidRequest(
            f"{count} images are asked for, and this server makes at most {max_images} in a "
            "request",
            param="num_images" if body.num_images > 1 else "class_ids",
        )


def _sampling(body: GenerationRequest, info: ModelInfo) -> SamplingConfig:
    names = ("guidance_scale", "temperature", "unmask_schedule", "order")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    try:
        sampling = replace(info.sampling, **given)
        sampling.check_for(info.generator)
    except ValueError as error:  # the other three fields' bounds are in the schema
        raise InvalidRequest(str(error), param="unmask_schedule") from None
    return sampling


def _timeout_s(body: GenerationRequest, settings: Settings) -> float:
    timeout_s = body.timeout_s or settings.default_timeout_s
    if timeout_s > settings.max_timeout_s:
        raise InvalidRequest(
            f"timeout_s must be at most {settings.max_timeout_s:g}, got {timeout_s:g}",
            param="timeout_s",
        )
    return timeout_s
