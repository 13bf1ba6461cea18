"""From a request that has the right form to a job that the served model can run.

Called by the API; the rules that depend on the model or on settings stand here and nowhere else.
Everything that determines the images is fixed here, the seeds included: what is queued is
complete, and the same wherever and whenever it runs.
"""

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.class_labels import AmbiguousClassError, UnknownClassError
from model.config import MAX_SEED, ImageRequest, SamplingConfig
from model.zoo import ModelInfo
from service.caller import NOBODY, Caller
from service.errors import InvalidRequest
from service.jobs import IdempotencyKey, Job, OutputFormat, new_job_id
from service.schemas import GenerationRequest
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a request came, beside its body: who asks, how the answer goes back, what repeats it."""

    caller: Caller = NOBODY
    output_format: OutputFormat | None = None  # that the answer must have; None leaves it open
    is_awaited: bool = True  # a client waits for the images
    is_single: bool = False  # the answer is one image's bytes
    shows_partials: bool = False
    idempotency_key: str | None = None
    job_id: str | None = None  # made by the client, which repeats the request under it
    warnings: tuple[str, ...] = ()

    @property
    def repeats_as(self) -> str | None:
        """What the client repeats the request by; None if every request is a new one."""
        return self.job_id or self.idempotency_key


def make_job(body: GenerationRequest, info: ModelInfo, settings: Settings, asking: Asking) -> Job:
    """Turn `body` into a job of `info`'s model.

    Raises: InvalidRequest names the field that is wrong.
    """
    asked_ids = _class_ids(body, info)
    # Before as many are listed: the number is the client's, and may be anything.
    _check_count(body, len(asked_ids) * body.num_images, settings.max_images)
    class_ids = [class_id for class_id in asked_ids for _ in range(body.num_images)]
    output_format = _output_format(body, asking)
    if asking.is_single:
        _check_is_single(len(class_ids), output_format)
    sampling = _sampling(body, info)
    seed = _drawn_seed(asking) if body.seed is None else body.seed
    return Job(
        id=asking.job_id or new_job_id(),
        images=tuple(
            ImageRequest(class_id=class_id, seed=(seed + i) % (MAX_SEED + 1), sampling=sampling)
            for i, class_id in enumerate(class_ids)
        ),
        num_steps=info.generator.num_tokens,
        output_format=output_format,
        timeout_s=_timeout_s(body, settings, asking),
        priority=body.priority,
        partial_images=body.partial_images if asking.shows_partials else 0,
        owner=asking.caller.owner,
        owner_quota=asking.caller.quota,
        created_at=time.time(),
        metadata=body.metadata,
        warnings=asking.warnings,
        output_compression=body.output_compression,
        response_format=body.response_format,
        fingerprint=fingerprint(body, asking) if asking.repeats_as else "",
        traceparent=asking.caller.traceparent,
    )


def idempotency_of(body: GenerationRequest, asking: Asking) -> IdempotencyKey | None:
    """Return what the queue knows a repetition of the request by, None if there is no key."""
    if asking.idempotency_key is None:
        return None
    key_hash = hashlib.sha256(asking.idempotency_key.encode()).hexdigest()
    return IdempotencyKey(key_hash=key_hash, fingerprint=fingerprint(body, asking))


def fingerprint(body: GenerationRequest, asking: Asking) -> str:
    """Return what only the same request has again, whichever header or field says it."""
    said = body.model_dump_json(exclude_defaults=True, exclude={"output_format"})
    return hashlib.sha256(f"{_output_format(body, asking)} {said}".encode()).hexdigest()


def _output_format(body: GenerationRequest, asking: Asking) -> OutputFormat:
    return asking.output_format or body.output_format or "png"


def _drawn_seed(asking: Asking) -> int:
    """Draw a seed. A request that can be repeated gets the same again, so that it gives the same
    images even when nothing remembers the first."""
    if asking.repeats_as is None:
        return secrets.randbelow(MAX_SEED + 1)
    digest = hashlib.sha256(f"seed of {asking.caller.owner} {asking.repeats_as}".encode()).digest()
    return int.from_bytes(digest[:4])


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


def _check_is_single(count: int, output_format: OutputFormat) -> None:
    if count > 1:
        raise InvalidRequest(
            f"a raw {output_format} answer holds one image, and {count} are asked for: ask for "
            "one, or send Accept: application/json",
            param="num_images",
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


def _timeout_s(body: GenerationRequest, settings: Settings, asking: Asking) -> float:
    # Nobody grows tired of waiting for what is fetched later.
    default_s = settings.default_timeout_s if asking.is_awaited else settings.max_timeout_s
    timeout_s = body.timeout_s or default_s
    if timeout_s > settings.max_timeout_s:
        raise InvalidRequest(
            f"timeout_s must be at most {settings.max_timeout_s:g}, got {timeout_s:g}",
            param="timeout_s",
        )
    return timeout_s
