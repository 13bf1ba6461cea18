"""Facts of payloads under fire: whatever lies in the queue's server is read or refused."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import PRESETS, ImageRequest
from service.jobs import EngineCounters, Job, JobTimings, PartialImage, WorkerStatus
from service.payloads import (
    PayloadError,
    decode_job,
    decode_partial,
    decode_result,
    decode_status,
    encode_job,
    encode_partial,
    encode_result,
    encode_status,
)
from tests.service.queue_ends import RESULT

SAMPLING = PRESETS["digits"].sampling
JOB = Job(
    id="gen_1",
    images=(ImageRequest(class_id=3, seed=7, sampling=SAMPLING),) * 2,
    num_steps=16,
    output_format="png",
    timeout_s=60.0,
    metadata={"order": "A-1"},
    warnings=("beware",),
    traceparent="00-1-2-3",
)
STATUS = WorkerStatus(name="w", phase="ready", num_slots=4, counters=EngineCounters(prefix_hits=1))
PARTIAL = PartialImage(index=1, content=b"\n{", share=0.5)
WRITTEN = {"job": JOB, "result": RESULT, "partial": PARTIAL, "status": STATUS}
READERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "job": (lambda content: decode_job("gen_1", content), encode_job(JOB)),
    "result": (decode_result, encode_result(RESULT)),
    "partial": (decode_partial, encode_partial(PARTIAL)),
    "status": (decode_status, encode_status(STATUS)),
}
FUZZ = settings(max_examples=150, deadline=None, derandomize=True)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 2**64])
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
kinds = pytest.mark.parametrize("kind", READERS)


def check(kind: str, content: bytes) -> None:
    """Pass if `content` is read as what it says or refused; another error fails the test."""
    decode, _ = READERS[kind]
    try:
        value = decode(content)
    except PayloadError:
        return
    check_types(value)


def check_types(value: Any) -> None:
    """Pass if numbers are finite numbers and texts are texts, as a dataclass declares them."""
    for field in fields(value):
        found = getattr(value, field.name)
        if field.type in (int, float):
            assert not isinstance(found, bool)
            assert isinstance(found, int | float)
            assert math.isfinite(found)
        elif field.type in (str, bytes, bool):
            assert isinstance(found, field.type)
        elif field.type in (EngineCounters, JobTimings):
            check_types(found)


@kinds
def test_what_is_written_is_read_back(kind: str) -> None:
    """Each reader reads what its writer wrote."""
    decode, content = READERS[kind]
    assert WRITTEN[kind] == decode(content)


@kinds
@FUZZ
@given(content=st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(kind: str, content: bytes) -> None:
    """No bytes raise anything but PayloadError."""
    check(kind, content)


@kinds
@FUZZ
@given(data=st.data())
def test_any_changed_bytes_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Nor do a payload's bytes, with some overwritten, cut off or doubled."""
    content = bytearray(READERS[kind][1])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 9)))
        content[start:end] = data.draw(st.binary(max_size=9))
    check(kind, bytes(content))


def places(value: Any) -> list[tuple[Any, Any]]:
    """List the places of a JSON value, each a container and its key or index."""
    keys: Any = ()
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
    own = [(value, key) for key in keys]
    return own + [place for key in keys for place in places(value[key])]


@kinds
@FUZZ
@given(data=st.data())
def test_any_changed_values_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Nor does its JSON with other values in it, or some missing."""
    line, newline, body = READERS[kind][1].partition(b"\n")
    values = json.loads(line)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(values)
        if not found:
            break
        container, key = data.draw(st.sampled_from(found))
        if data.draw(st.booleans()):
            container[key] = data.draw(VALUES)
        else:
            del container[key]
    check(kind, json.dumps(values).encode() + newline + body)


@kinds
def test_what_nests_too_deep_is_refused(kind: str) -> None:
    """A payload of brackets exhausts no stack."""
    check(kind, b"[" * 100_000)
    check(kind, b'{"a":' * 100_000)
