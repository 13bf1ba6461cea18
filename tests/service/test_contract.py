"""Facts of the contract: whatever the OpenAPI document allows or forbids, it says the answer.

Schemathesis makes requests from the document and holds each answer against it: its status, its
type, its fields. Most are steered to where there is something to find: to a class that
exists, a generation that does, a PNG that was made here.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from service.auth import is_open
from service.routes.reproduce import REPRODUCE
from tests.service.harness import URL, expected_png, listening
from tests.service.key_files import one_key

pytestmark = pytest.mark.anyio

PNG = expected_png(7, 42)
KNOWN = "a-known-generation"
ACCEPT = ("*/*", "*/*", "application/json", "image/png", "text/event-stream", "text/html")
KEPT = ("metadata", "priority", "order", "response_format", "output_format")
PREFER = ("", "respond-async", "wait=0")
# Statuses that must come, or the requests were not worth making.
FOUND = [
    ("POST /v1/generations", 200),
    ("POST /v1/generations", 400),
    ("POST /v1/images/generations", 200),
    ("POST /v1/images/generations", 400),
    ("POST /v1/reproduce", 200),
    ("POST /v1/reproduce", 400),
    ("GET /v1/generations/{job_id}/content", 200),
    ("GET /v1/generations/{job_id}/events", 404),
]
# What the document cannot say a schedule must be, and which keys are known, is tested elsewhere.
NOT_CHECKED = [positive_data_acceptance, ignored_auth]


@dataclass(frozen=True)
class Steering:
    """What a request is changed to, so that it finds something."""

    class_id: int
    num_images: int
    accept: str
    prefer: str

    def apply(self, case: Case[Any]) -> None:
        """Change a request of a good form."""
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = KNOWN
        if "model_id" in case.path_parameters:
            case.path_parameters["model_id"] = "digits"
        if "model" in case.query:
            case.query["model"] = "digits"
        if case.path == REPRODUCE:
            case.body = PNG
        if isinstance(case.body, dict):
            kept = {name: case.body[name] for name in KEPT if name in case.body}
            if "prompt" in case.body:
                kept |= {"prompt": str(self.class_id), "n": self.num_images}
            else:
                kept |= {"class_id": self.class_id, "num_images": self.num_images}
            case.body = kept
        case.headers.update({"accept": self.accept, "prefer": self.prefer})


STEERINGS = st.builds(
    Steering,
    class_id=st.integers(0, 9),
    num_images=st.integers(1, 3),
    accept=st.sampled_from(ACCEPT),
    prefer=st.sampled_from(PREFER),
)

MOSTLY = st.sampled_from([True, True, True, False])


def operations(schema: Any) -> Iterator[Any]:
    """Yield every operation of the document."""
    for result in schema.get_all_operations():
        yield result.ok()


def fuzz(base_url: str, key: str | None, max_examples: int) -> Counter[tuple[str, int]]:
    """Try every operation with requests of good and of bad form; return how often each was
    answered with each status."""
    statuses: Counter[tuple[str, int]] = Counter()
    schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    for operation in operations(schema):
        modes = [GenerationMode.POSITIVE]
        if operation.body or operation.query or operation.path_parameters:
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            cases = operation.as_strategy(generation_mode=mode)
            check = checker(cases, mode, key, statuses)
            settings(
                max_examples=max_examples,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )(check)()
    return statuses


def checker(
    cases: st.SearchStrategy[Case[Any]],
    mode: GenerationMode,
    key: str | None,
    statuses: Counter[tuple[str, int]],
) -> Callable[[], None]:
    """Return a test of the requests that `cases` draws."""

    @given(case=cases, steering=STEERINGS, is_steered=MOSTLY, has_key=MOSTLY)
    def check(case: Case[Any], steering: Steering, is_steered: bool, has_key: bool) -> None:
        unchecked = list(NOT_CHECKED)
        if is_steered and mode is GenerationMode.POSITIVE:
            steering.apply(case)
            unchecked.append(negative_data_rejection)  # it knows the request as it was
        show(key if has_key else None, case)
        is_impatient = isinstance(case.body, dict) and bool(case.body.get("timeout_s"))
        if is_impatient:  # and may get 504
            unchecked.append(not_a_server_error)
        reply = case.call(timeout=60)
        statuses[case.operation.label, reply.status_code] += 1
        assert reply.status_code < 500 or (is_impatient and reply.status_code == 504)
        if key is not None and not has_key:
            assert is_open(case.path) or 401 == reply.status_code
        case.validate_response(reply, excluded_checks=unchecked)

    return check


def show(key: str | None, case: Case[Any]) -> None:
    """Replace the keys that were made up by `key`, or by none."""
    for name in list(case.headers):
        if name.lower() in ("authorization", "x-api-key"):
            del case.headers[name]
    if key is not None:
        case.headers["authorization"] = f"Bearer {key}"


async def prepare(client: httpx.AsyncClient, key: str | None) -> None:
    """Make the generation that steered requests find."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    body = {"class_id": 7, "num_images": 2}
    reply = await client.put(f"{URL}/{KNOWN}", json=body, headers=headers)
    assert 200 == reply.status_code


@pytest.mark.parametrize("has_keys", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize("max_examples", [
    10,
    pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
])  # fmt: skip
async def test_every_answer_is_as_documented(
    has_keys: bool, max_examples: int, tmp_path: Path
) -> None:
    """No request ends in an answer that the document does not have, or in an error of ours."""
    file = tmp_path / "keys.json"
    key = one_key(file) if has_keys else None
    async with listening(api_keys_file=file if has_keys else None) as h:
        await prepare(h.client, key)
        base_url = str(h.client.base_url).rstrip("/")
        statuses = await asyncio.to_thread(fuzz, base_url, key, max_examples)
    assert set(FOUND) <= set(statuses)
    assert has_keys == any(status == 401 for _, status in statuses)
