"""Facts of what surrounds every request: ids, times, the metrics' labels, the body's bound."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from service.middleware import BodyLimit
from tests.service.harness import URL, error_of, running

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


async def chunks(num_chunks: int, size: int) -> AsyncIterator[bytes]:
    """Yield a body whose length is not announced."""
    for _ in range(num_chunks):
        yield b" " * size


async def test_every_answer_has_an_id_of_its_own_and_its_time() -> None:
    """X-Request-Id is made here, also for errors, whatever the client sends."""
    async with running() as h:
        ids = []
        for path in ("/livez", "/livez", "/nowhere", "/metrics"):
            reply = await h.client.get(path, headers={"x-request-id": "mine"})
            ids.append(reply.headers["x-request-id"])
            assert re.fullmatch(r"total;dur=\d+\.\d", reply.headers["server-timing"])
        assert all(re.fullmatch(r"req_[0-9a-f]{24}", request_id) for request_id in ids)
        assert 4 == len(set(ids))


async def test_requests_are_counted_by_route_not_by_path() -> None:
    """Clients cannot make up labels: unknown paths and methods share one each."""
    async with running() as h:
        for path in ("/v1/models/digits", "/v1/models/a", "/x", "/y"):
            await h.client.get(path)
        await h.client.request("BREW", "/x")
        text = (await h.client.get("/metrics")).text
    counted = dict(re.findall(r"^http_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE))
    assert {
        'handler="/v1/models/{model_id}",method="GET",status="200"': "1.0",
        'handler="/v1/models/{model_id}",method="GET",status="404"': "1.0",
        'handler="unmatched",method="GET",status="404"': "2.0",
        'handler="unmatched",method="other",status="404"': "1.0",
    } == counted


async def test_a_body_up_to_the_limit_is_read_and_one_byte_more_is_413() -> None:
    """The bound is exact."""
    async with running(max_body_bytes=1024) as h:
        content = b'{"class_id": 1}'.ljust(1024)
        assert 200 == (await h.client.post(URL, content=content, headers=JSON)).status_code
        reply = await h.client.post(URL, content=content + b" ", headers=JSON)
        assert (413, "body_too_large") == (reply.status_code, error_of(reply)["code"])
        assert "1024" in error_of(reply)["message"]
        assert "close" == reply.headers["connection"]


async def test_a_body_that_does_not_arrive_is_408() -> None:
    """Whoever begins a body and does not go on with it is answered, and cut off."""
    begun: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not begun:
            await asyncio.Event().wait()
        return begun.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def never(*_: object) -> None:
        raise AssertionError("the application sees no such request")

    limit = BodyLimit(never, 1024, {}, body_s=0.01)
    await limit({"type": "http", "path": URL}, receive, send)
    start, content = sent
    assert (408, True) == (start["status"], (b"connection", b"close") in start["headers"])
    assert "body_too_slow" == json.loads(content["body"])["error"]["code"]


async def test_a_body_is_counted_as_it_arrives() -> None:
    """A body without a length is refused when it has become too large."""
    async with running(max_body_bytes=1024) as h:
        reply = await h.client.post(URL, content=chunks(3, 512), headers=JSON)
        assert 413 == reply.status_code
        assert reply.headers["x-request-id"].startswith("req_")
