"""Facts of the wire format between versions: what older and newer processes make of each other.

What hostile bytes do is in test_payload_fuzzing.py.
"""

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from service.jobs import ANYONE, Job
from service.payloads import (
    MAX_IMAGES,
    MAX_REASON,
    PayloadError,
    decode_job,
    decode_partial,
    decode_result,
    decode_status,
    encode_job,
    encode_result,
)
from tests.service.queue_ends import RESULT, job

SENT = job(
    "a",
    num_images=2,
    owner="ann",
    created_at=1753000000.25,
    metadata={"to": "Ünal", "": "\n"},
    warnings=("style has no effect",),
    response_format="url",
    fingerprint="f",
    traceparent="00-1-2-01",
)
NEW_FIELDS = (
    "created_at", "metadata", "warnings", "response_format", "fingerprint", "traceparent",
)  # fmt: skip


def values_of(sent: Job) -> dict[str, Any]:
    """Return what a payload says."""
    values: dict[str, Any] = json.loads(encode_job(sent))
    return values


def decoded(values: dict[str, Any]) -> Job:
    """Read a payload that says `values`."""
    return decode_job("a", json.dumps(values).encode())


def test_a_payload_says_everything_but_its_id() -> None:
    """The id is the key that it lies under; all else comes back."""
    assert "id" not in values_of(SENT)
    assert SENT == decode_job("a", encode_job(SENT))
    assert replace(SENT, id="b") == decode_job("b", encode_job(SENT))


def test_an_older_payload_has_the_defaults() -> None:
    """A job that was queued before there were such fields runs as it would have."""
    values = values_of(SENT)
    for name in NEW_FIELDS:
        del values[name]
    assert job("a", num_images=2, owner="ann") == decoded(values)
    assert ANYONE == job("a").owner


def test_fields_of_a_newer_version_are_ignored() -> None:
    """A new API may add fields before the last old worker is gone."""
    assert SENT == decoded({**values_of(SENT), "hue": 3, "images_of": [{}]})


@pytest.mark.parametrize(
    ("version", "is_newer"),
    [(2, True), (99, True), (0, False), (-1, False), ("2", False), (None, False), (True, False),
     (1.5, False), ([2], False)],
)  # fmt: skip
def test_only_its_own_version_is_read(version: object, is_newer: bool) -> None:
    """Another version is refused before anything else is looked at, and a newer one is known to
    be newer: somebody else may read it."""
    with pytest.raises(PayloadError, match="version") as refused:
        decoded({"version": version})
    assert is_newer is refused.value.is_newer
    header = json.dumps({"version": version}).encode()
    with pytest.raises(PayloadError, match="version") as refused:
        decode_result(header + b"\n")
    assert is_newer is refused.value.is_newer


def test_an_older_workers_result_has_no_device_time() -> None:
    """What a worker did not measure is zero."""
    line, _, body = encode_result(RESULT).partition(b"\n")
    header = json.loads(line)
    del header["timings"]["device_s"]
    assert RESULT == decode_result(json.dumps(header).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("created_at", -1), ("created_at", "now"), ("metadata", []), ("metadata", {"a": 1}),
        ("metadata", {"\ud800": "a"}), ("warnings", "a"), ("warnings", [None]),
        ("response_format", "png"), ("fingerprint", None), ("traceparent", 1), ("owner", 7),
        ("owner", "\ud800"), ("priority", ["high"]), ("images", []), ("images", "two"),
        ("num_steps", True), ("timeout_s", "60"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(name: str, value: object) -> None:
    """Each field is checked, the new ones too."""
    with pytest.raises(PayloadError, match="no job can be read"):
        decoded({**values_of(SENT), name: value})


def test_too_many_images_are_counted_and_not_made() -> None:
    """A payload takes memory in proportion to its own bytes, whatever it says."""
    count = 50 * MAX_IMAGES
    payload = json.dumps({**values_of(SENT), "images": [0] * count}).encode()
    header = json.dumps({"version": 1, "lengths": [0] * count, "timings": {}}).encode()
    tracemalloc.start()
    with pytest.raises(PayloadError, match="images"):
        decode_job("a", payload)
    with pytest.raises(PayloadError, match="images"):
        decode_result(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(payload)


def test_a_reason_is_short() -> None:
    """What somebody wrote into a payload does not fill the log."""
    for payload in (
        {**values_of(SENT), "priority": "x" * 10**6},
        {**values_of(SENT), "images": [{"class_id": 0, "seed": 0, "sampling": {"x" * 10**6: 1}}]},
        {"version": "x" * 10**6},
    ):
        with pytest.raises(PayloadError) as refused:
            decoded(payload)
        assert len(str(refused.value)) <= MAX_REASON


def test_what_is_no_json_object_is_refused() -> None:
    """Nothing else has fields."""
    for decode in (decode_result, decode_partial, decode_status):
        for content in (b"", b"[]", b"null", b"\xff\xfe", b"1" * 5000):
            with pytest.raises(PayloadError, match="not"):
                decode(content)
