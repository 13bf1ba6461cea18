"""Facts of refusals: always the envelope, the field named, the client's text not repeated."""

import json
from typing import Any

import httpx
import pytest

from service.api import Api
from service.memory_queue import MemoryJobQueue
from service.metrics import Metrics
from service.queue_policy import QueuePolicy
from service.served_models import ServedModel, ServedModels
from service.tracing import Traces
from tests.service.harness import URL, error_of, running

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
NAN, INFINITY = float("nan"), float("inf")

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"class_id": 10}, "class_id"),
    ({"class_id": -1}, "class_id"),
    ({"class_id": "7"}, "class_id"),
    ({"class_id": 7.0}, "class_id"),
    ({"class_id": True}, "class_id"),
    ({"class_id": 10**400}, "class_id"),
    ({"class": 10}, "class"),
    ({"class": "umbrella"}, "class"),
    ({"class": ""}, "class"),
    ({"class": "n01440764"}, "class"),
    ({"class": False}, "class"),
    ({"class": 1.5}, "class"),
    ({"class": ["seven"]}, "class"),
    ({"class_ids": []}, "class_ids"),
    ({"class_ids": [1, 10]}, "class_ids"),
    ({"class_ids": [1, True]}, "class_ids"),
    ({"class_ids": list(range(10)) * 2}, "class_ids"),
    ({}, "class_id"),
    ({"class_id": 1, "class": "one"}, "class_id"),
    ({"class_id": None}, "class_id"),
    ({"class_id": 1, "num_images": 0}, "num_images"),
    ({"class_id": 1, "num_images": 17}, "num_images"),
    ({"class_ids": [1, 2], "num_images": 9}, "num_images"),
    ({"class_id": 1, "num_images": True}, "num_images"),
    ({"class_id": 1, "num_images": "2"}, "num_images"),
    ({"class_id": 1, "num_images": None}, "num_images"),
    ({"class_id": 1, "seed": -1}, "seed"),
    ({"class_id": 1, "seed": 2**32}, "seed"),
    ({"class_id": 1, "seed": 1.5}, "seed"),
    ({"class_id": 1, "seed": True}, "seed"),
    ({"class_id": 1, "guidance_scale": 0.99}, "guidance_scale"),
    ({"class_id": 1, "guidance_scale": 30.01}, "guidance_scale"),
    ({"class_id": 1, "guidance_scale": NAN}, "guidance_scale"),
    ({"class_id": 1, "guidance_scale": INFINITY}, "guidance_scale"),
    ({"class_id": 1, "guidance_scale": True}, "guidance_scale"),
    ({"class_id": 1, "guidance_scale": "3"}, "guidance_scale"),
    ({"class_id": 1, "temperature": -0.01}, "temperature"),
    ({"class_id": 1, "temperature": 10.01}, "temperature"),
    ({"class_id": 1, "temperature": -INFINITY}, "temperature"),
    ({"class_id": 1, "randomize_temperature": 11}, "randomize_temperature"),
    ({"class_id": 1, "temperature": 1, "randomize_temperature": 1}, "randomize_temperature"),
    ({"class_id": 1, "unmask_schedule": [4, 4, 4]}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": [7, 5, 2, 2]}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": [0, 16]}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": []}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": [True] * 16}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": [8.0, 8.0]}, "unmask_schedule"),
    ({"class_id": 1, "unmask_schedule": 16}, "unmask_schedule"),
    ({"class_id": 1, "tokens_allocation": "16"}, "tokens_allocation"),
    ({"class_id": 1, "order": "spiral"}, "order"),
    ({"class_id": 1, "output_format": "gif"}, "output_format"),
    ({"class_id": 1, "response_format": "gif"}, "response_format"),
    ({"class_id": 1, "timeout_s": 0}, "timeout_s"),
    ({"class_id": 1, "timeout_s": 601}, "timeout_s"),
    ({"class_id": 1, "timeout_s": NAN}, "timeout_s"),
    ({"class_id": 1, "timeout_s": True}, "timeout_s"),
    ({"class_id": 1, "metadata": {"a": 1}}, "metadata"),
    ({"class_id": 1, "metadata": {"a": "x" * 513}}, "metadata"),
    ({"class_id": 1, "metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"class_id": 1, "metadata": []}, "metadata"),
    ({"class_id": 1, "priority": "urgent"}, "priority"),
    ({"class_id": 1, "priority": 1}, "priority"),
    ({"class_id": 1, "partial_images": -1}, "partial_images"),
    ({"class_id": 1, "partial_images": 4}, "partial_images"),
    ({"class_id": 1, "partial_images": True}, "partial_images"),
    ({"class_id": 1, "async": True}, "async"),
    ({"class_id": 1, "__proto__": {}}, "__proto__"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), BAD_FIELDS)
async def test_a_bad_field_is_400_and_named(body: dict[str, Any], param: str) -> None:
    """Each value that is not allowed is refused before the queue, its field in `param`."""
    async with running() as h:
        content = json.dumps(body)  # with NaN and Infinity as Python writes them
        reply = await h.client.post(URL, content=content, headers=JSON)
        error = error_of(reply)
        assert (400, "invalid_request_error", param) == (
            reply.status_code, error["type"], error["param"],
        )  # fmt: skip
        assert len(error["message"]) < 300
        assert 0 == (await h.queue.stats()).num_accepted


BAD_BODIES = [
    b"", b"{", b"null", b"[]", b"7", b'"class"', b'{"class_id": 1,}', b"\xff\xfe", b"[" * 30000,
    b'{"class_id": ' + b"1" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_body_that_is_no_json_object_is_400(content: bytes) -> None:
    """Whatever arrives instead of a JSON object gets the envelope, not a server error."""
    async with running() as h:
        reply = await h.client.post(URL, content=content, headers=JSON)
        assert (400, "invalid_json") == (reply.status_code, error_of(reply)["code"])


async def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    """A misspelt name is not repeated but answered with what may have been meant."""
    async with running() as h:
        error = error_of(await h.client.post(URL, json={"class": "sevn"}))
        assert ("unknown_class", "class") == (error["code"], error["param"])
        assert "7 seven" in error["message"]
        assert "sevn" not in error["message"]


async def test_a_number_out_of_bounds_is_repeated() -> None:
    """The message says the bound and the number that came."""
    async with running() as h:
        error = error_of(await h.generate(class_id=1, guidance_scale=31))
        assert "guidance_scale should be less than or equal to 30, got 31" == error["message"]


async def test_an_unknown_field_is_answered_with_the_known_ones() -> None:
    """Whoever mistypes a field reads the names of all fields, `class` included."""
    async with running() as h:
        error = error_of(await h.generate(class_id=1, num_image=2))
        assert "unknown_parameter" == error["code"]
        for name in ("class,", "num_images", "unmask_schedule"):
            assert name in error["message"]


async def test_another_model_is_404_with_the_served_one() -> None:
    """A model that nobody serves is not found, wherever it is named."""
    async with running() as h:
        replies = [
            await h.generate(class_id=1, model="dall-e-3"),
            await h.client.get("/v1/models/dall-e-3"),
            await h.client.get("/v1/classes?model=dall-e-3"),
        ]
        for reply in replies:
            error = error_of(reply)
            assert (404, "model", "model_not_found") == (
                reply.status_code, error["param"], error["code"],
            )  # fmt: skip
            assert "digits" in error["message"]


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/nowhere", 404, "not_found"),
    ("POST", "/v1/generations/", 404, "not_found"),
    ("PATCH", "/v1/generations", 405, "method_not_allowed"),
    ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ("GET", "/v1/classes?limit=0", 400, "invalid_value"),
    ("GET", "/v1/classes?limit=x", 400, "invalid_value"),
    ("GET", "/v1/classes?q=" + "x" * 101, 400, "invalid_value"),
])  # fmt: skip
async def test_every_route_fails_in_the_envelope(
    method: str, path: str, status: int, code: str
) -> None:
    """Routing and query errors have the same shape as all others."""
    async with running() as h:
        reply = await h.client.request(method, path)
        assert (status, code) == (reply.status_code, error_of(reply)["code"])
        assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize("declared", [
    None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
])  # fmt: skip
async def test_a_body_not_declared_as_json_is_415(declared: str | None) -> None:
    """JSON must be declared; charset parameters do not matter."""
    async with running() as h:
        headers = {"content-type": declared} if declared else {}
        reply = await h.client.post(URL, content=b'{"class_id": 1}', headers=headers)
        assert (415, "unsupported_media_type") == (reply.status_code, error_of(reply)["code"])
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        reply = await h.client.post(URL, content=b'{"class_id": 1}', headers=headers)
        assert 200 == reply.status_code


async def test_an_accept_header_without_our_types_is_406() -> None:
    """What cannot be produced is refused before anything is generated."""
    async with running() as h:
        reply = await h.generate({"accept": "text/html"}, class_id=1)
        assert (406, "not_acceptable") == (reply.status_code, error_of(reply)["code"])
        assert 0 == (await h.queue.stats()).num_accepted


async def test_raw_bytes_of_several_images_are_refused() -> None:
    """An image answer holds one image; the field to change is named."""
    async with running() as h:
        reply = await h.generate({"accept": "image/png"}, class_id=1, num_images=2)
        assert (400, "num_images") == (reply.status_code, error_of(reply)["param"])
        reply = await h.generate({"accept": "image/png"}, class_id=1, output_format="webp")
        assert (400, "output_format") == (reply.status_code, error_of(reply)["param"])


async def test_an_unexpected_error_is_500_and_says_nothing() -> None:
    """A bug is answered in the envelope, with a request id and without its text."""

    class BrokenQueue(MemoryJobQueue):
        async def stats(self) -> Any:
            raise RuntimeError("secret detail")

    async with running() as h:
        parts = h.service
        broken = BrokenQueue(QueuePolicy(max_queued_cost=1))
        models = ServedModels([ServedModel(parts.info, broken)])
        api = Api(
            settings=parts.settings, models=models, metrics=Metrics({"m": "r"}), traces=Traces()
        )
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://bar") as client:
            reply = await client.get("/metrics")
        assert (500, "internal_error") == (reply.status_code, error_of(reply)["code"])
        assert "secret" not in reply.text
        assert reply.headers["x-request-id"].startswith("req_")
