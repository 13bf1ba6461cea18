"""Jobs and results as bytes: the wire format between API, queue server and worker.

A payload is JSON with a version; what comes back from the server is validated again, because the
server is another process's memory. Unknown fields are ignored, so that a new API may add some
before the old workers are gone; a version that is not known is refused. A result is one line of
JSON, which says how long each image is, and the images' bytes behind it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from itertools import accumulate
from typing import Any, get_args

from model.config import ImageRequest, SamplingConfig
from service.jobs import (
    EngineCounters,
    Job,
    JobResult,
    JobTimings,
    OutputFormat,
    PartialImage,
    Priority,
    ResponseFormat,
    WorkerPhase,
    WorkerStatus,
)

VERSION = 1  # of jobs and of results
MAX_IMAGES = 4096
MAX_STEPS = 65536
MAX_REASON = 200  # characters of what was wrong: part of it is what a stranger wrote


class PayloadError(Exception):
    """Bytes that are not what they should be; `is_newer` if a newer version of this may know."""

    def __init__(self, message: str, *, is_newer: bool = False) -> None:
        super().__init__(message[:MAX_REASON])
        self.is_newer = is_newer


def encode_job(job: Job) -> bytes:
    """Return all of `job` but its id, which is the key that it lies under."""
    images = [
        {"class_id": i.class_id, "seed": i.seed, "sampling": i.sampling.to_json()}
        for i in job.images
    ]
    values = {
        **vars(job), "images": images, "metadata": dict(job.metadata), "version": VERSION
    }  # fmt: skip
    del values["id"]
    return json.dumps(values, separators=(",", ":")).encode()


def decode_job(job_id: str, payload: bytes) -> Job:
    """Return the job that `payload` holds.

    Raises: PayloadError says what is wrong with it.
    """
    values = _versioned(payload)
    try:
        return _job(job_id, values)
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"no job can be read from the payload: {error}") from None


def _job(job_id: str, values: dict[str, Any]) -> Job:
    images = tuple(
        ImageRequest(
            class_id=_number(image["class_id"], int, 0, 2**31),
            seed=_number(image["seed"], int, 0, 2**32 - 1),
            sampling=SamplingConfig.from_json(image["sampling"]),
        )
        for image in _few(values["images"])
    )
    return Job(
        id=job_id,
        images=images,
        num_steps=_number(values["num_steps"], int, 1, MAX_STEPS),
        output_format=_one_of(values["output_format"], get_args(OutputFormat)),
        timeout_s=_number(values["timeout_s"], float, 0, 1e9),
        priority=_one_of(values["priority"], get_args(Priority)),
        partial_images=_number(values["partial_images"], int, 0, 64),
        owner=_text(values["owner"]),
        **_later_fields(values),
    )


def _later_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that older payloads do not have."""
    known = {name: values[name] for name in LATER_FIELDS if name in values}
    return {name: LATER_FIELDS[name](value) for name, value in known.items()}


def encode_result(result: JobResult) -> bytes:
    """Return a line of JSON and the images."""
    header = {
        "version": VERSION,
        "lengths": [len(image) for image in result.images],
        "timings": asdict(result.timings),
    }
    return b"\n".join([json.dumps(header).encode(), b"".join(result.images)])


def decode_result(content: bytes) -> JobResult:
    """Return the result that `content` holds.

    Raises: PayloadError says what is wrong with it.
    """
    line, _, body = content.partition(b"\n")
    header = _versioned(line)
    try:
        lengths = [_number(length, int, 0, len(body)) for length in _few(header["lengths"])]
        names = ("queue_s", "generation_s", "decode_s", "encode_s", "device_s")
        given = {"device_s": 0.0, **header["timings"]}  # which older workers do not measure
        timings = {name: _number(given[name], float, -1e9, 1e9) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"no result can be read: {error}") from None
    if sum(lengths) != len(body):
        raise PayloadError(f"a result of {sum(lengths)} bytes has {len(body)}")
    images = tuple(
        body[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)
    )
    return JobResult(images=images, timings=JobTimings(**timings))


def encode_partial(partial: PartialImage) -> bytes:
    """Return a line of JSON and the preview."""
    line = json.dumps({"index": partial.index, "share": partial.share}).encode()
    return line + b"\n" + partial.content


def decode_partial(content: bytes) -> PartialImage:
    """Return the preview that `content` holds.

    Raises: PayloadError says what is wrong with it.
    """
    line, _, body = content.partition(b"\n")
    header = _object(line)
    try:
        index = _number(header["index"], int, 0, MAX_IMAGES)
        return PartialImage(index=index, content=body, share=_number(header["share"], float, 0, 1))
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"no preview can be read: {error}") from None


def encode_status(status: WorkerStatus) -> bytes:
    """Return what a worker says of itself."""
    return json.dumps(asdict(status)).encode()


def decode_status(content: bytes) -> WorkerStatus:
    """Return what a worker said of itself; fields that this version does not know are ignored.

    Raises: PayloadError says what is wrong with it.
    """
    try:
        return WorkerStatus(**_declared(WorkerStatus, _object(content)))
    except (TypeError, ValueError) as error:
        raise PayloadError(f"no worker's status can be read: {error}") from None


def _declared(kind: Any, values: Any) -> dict[str, Any]:
    """Return those of `values` that are fields of a dataclass, each read as it is declared."""
    if not isinstance(values, dict):
        raise TypeError("not an object")
    return {
        field.name: STATUS_TYPES[field.type](values[field.name])
        for field in fields(kind)
        if field.name in values
    }


def _object(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise PayloadError("not JSON") from None
    if not isinstance(values, dict):
        raise PayloadError("not a JSON object")
    return values


def _versioned(content: bytes) -> dict[str, Any]:
    values = _object(content)
    version = values.get("version")
    if version != VERSION or isinstance(version, bool):
        is_newer = isinstance(version, int) and version > VERSION
        raise PayloadError(f"payload version {version!r} is not {VERSION}", is_newer=is_newer)
    return values


def _few(values: Any) -> list[Any]:
    """Return a list of what there is of each image, before anything is made of it."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_IMAGES:
        raise ValueError(f"not a list of 1 to {MAX_IMAGES} images")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()  # half a surrogate pair is JSON, and no text: it could not be sent on
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list of texts")
    return tuple(map(_text, value))


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _numbers_by_name(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError("not numbers by name")
    return {_text(name): _number(number, float, 0, 1e12) for name, number in value.items()}


def _text_by_name(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("not texts by name")
    return {_text(name): _text(text) for name, text in value.items()}


def _number(value: Any, kind: type, least: float, most: float) -> Any:
    is_number = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not is_number or isinstance(value, bool):
        raise ValueError(f"not a number of type {kind.__name__}")
    if not least <= value <= most:  # NaN is not
        raise ValueError(f"{value} is not between {least} and {most}")
    return value


def _one_of(value: Any, allowed: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {list(allowed)}")
    return value


# Fields of a job that came after the first version, and how each is read.
LATER_FIELDS: dict[str, Callable[[Any], Any]] = {
    "created_at": lambda value: _number(value, float, 0, 1e11),
    "metadata": _text_by_name,
    "warnings": _texts,
    "owner_quota": lambda value: value if value is None else _number(value, int, 1, 2**31),
    "output_compression": lambda value: value if value is None else _number(value, int, 0, 100),
    "response_format": lambda value: _one_of(value, get_args(ResponseFormat)),
    "fingerprint": _text,
    "traceparent": _text,
}

# How each type of a field of a worker's status is read.
STATUS_TYPES: dict[Any, Callable[[Any], Any]] = {
    str: _text,
    bool: _truth,
    int: lambda value: _number(value, int, 0, 2**63),
    float: lambda value: _number(value, float, 0, 1e12),
    WorkerPhase: lambda value: _one_of(value, get_args(WorkerPhase)),
    Mapping[str, float]: _numbers_by_name,
    EngineCounters: lambda value: EngineCounters(**_declared(EngineCounters, value)),
}
