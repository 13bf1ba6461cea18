"""Facts of `POST /v1/reproduce`: the same image comes out, or what differs is counted."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from service.images import contact_sheet, encode
from service.provenance import Provenance
from service.reproduction import Original
from service.routes.reproduce import REPRODUCE, _verdict
from tests.service.fakes import fake_info, fake_pixels
from tests.service.harness import Harness, error_of, expected_png, running
from tests.service.png_parts import put_together, take_apart, with_text

pytestmark = pytest.mark.anyio

PNG = expected_png(7, 42, guidance_scale=4.5, temperature=0.5, order="random")
INFO = fake_info()


async def post(h: Harness, content: bytes, **headers: str) -> httpx.Response:
    """Send a PNG to be made again."""
    return await h.client.post(
        REPRODUCE, content=content, headers={"content-type": "image/png", **headers}
    )


def changed(count: int, by: int) -> bytes:
    """Return the PNG with another value in one colour of its first pixels."""
    original = Original.read(PNG)
    pixels = original.pixels_of(INFO).copy()
    pixels[0, :count, 1] ^= by
    return encode(pixels, "png", original.record.texts())


async def test_a_json_answer_holds_the_image_and_the_verdict() -> None:
    """It is a generation like any other, and says besides that every pixel is the same."""
    async with running() as h:
        body = (await post(h, PNG)).json()
        assert {
            "matched": True,
            "differing_pixels": 0,
            "largest_difference": 0,
            "revision_matches": True,
        } == body.pop("reproduction")
        (image,) = body["data"]
        assert PNG == base64.b64decode(image["b64_json"])
        assert (7, 42, "succeeded") == (image["class_id"], image["seed"], body["status"])
        plain = (await h.generate(class_id=7)).json()
        assert set(plain) == set(body)


async def test_an_image_accept_header_gives_the_file() -> None:
    """The bytes are those that came in, and a header has the verdict."""
    async with running() as h:
        reply = await post(h, PNG, accept="image/png")
        assert PNG == reply.content
        assert "image/png" == reply.headers["content-type"]
        assert "true" == reply.headers["x-pixels-matched"]
        assert ("7", "42") == (reply.headers["x-class-id"], reply.headers["x-seed"])


async def test_changed_pixels_are_counted() -> None:
    """A changed image is made again as it was; the answer says how many pixels differ."""
    async with running() as h:
        content = changed(5, by=0x20)
        body = (await post(h, content)).json()
        assert {
            "matched": False,
            "differing_pixels": 5,
            "largest_difference": 32,
            "revision_matches": True,
        } == body["reproduction"]
        assert PNG == base64.b64decode(body["data"][0]["b64_json"])
        reply = await post(h, content, accept="image/png")
        assert (200, "false") == (reply.status_code, reply.headers["x-pixels-matched"])


def test_a_worker_of_another_revision_is_told() -> None:
    """The revision that counts is the one that the worker wrote into the new PNG."""
    original = Original.read(PNG)
    again = with_text(PNG, "bar:revision", "feedface")
    verdict = _verdict(original, original.pixels_of(INFO), again)
    assert (True, False) == (verdict.matched, verdict.revision_matches)


def sheet() -> bytes:
    """Return a contact sheet of two images."""
    image = Original.read(PNG).record.image
    pixels = contact_sheet(np.stack([fake_pixels(image), fake_pixels(image)]))
    return encode(pixels, "png", Provenance.of(INFO, image, 2).texts())


REFUSALS: list[tuple[bytes, dict[str, str], int, str, str]] = [
    (b"", {}, 400, "invalid_png", "not a PNG"),
    (encode(fake_pixels(Original.read(PNG).record.image), "jpeg", {}), {}, 400, "invalid_png",
     "JPEG"),
    (encode(np.zeros((32, 32, 3), np.uint8), "png", {}), {}, 400, "invalid_provenance",
     "not made here"),
    (with_text(PNG, "bar:model", "secret-model"), {}, 404, "model_not_found", "it serves digits"),
    (with_text(PNG, "bar:revision", "feedface"), {}, 400, "revision_mismatch", "feedface"),
    (with_text(PNG, "bar:class_id", "11"), {}, 400, "invalid_provenance", "between 0 and 9"),
    (sheet(), {}, 400, "invalid_value", "a sheet of 2 images"),
    (put_together(take_apart(PNG)[:-2] + take_apart(PNG)[-1:]), {}, 400, "invalid_png", "damaged"),
    (PNG, {"content-type": "image/jpeg"}, 415, "unsupported_media_type", "no exact pixels"),
    (PNG, {"content-type": "application/json"}, 415, "unsupported_media_type", "Content-Type"),
    (PNG, {"accept": "image/webp"}, 406, "not_acceptable", "application/json, image/png"),
    (PNG + bytes(9000), {}, 413, "body_too_large", "larger than 9000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "headers", "status", "code", "message"), REFUSALS)
async def test_what_cannot_be_made_again_never_reaches_the_queue(
    content: bytes, headers: dict[str, str], status: int, code: str, message: str
) -> None:
    """Each is refused with its reason, no text of the file in it, before anything is drawn."""
    async with running(max_reproduce_bytes=9000) as h:
        reply = await post(h, content, **headers)
        error = error_of(reply)
        assert (status, code) == (reply.status_code, error["code"])
        assert message in error["message"]
        assert "secret" not in error["message"]
        assert 0 == (await h.queue.stats()).num_accepted


async def test_only_this_route_takes_large_bodies() -> None:
    """An image may be larger than other bodies, which keep their own bound."""
    filler = [(b"teSt", bytes(2000))]
    large = put_together([*take_apart(PNG)[:-1], *filler, take_apart(PNG)[-1]])
    async with running(max_body_bytes=4000) as h:
        assert len(large) > 4000
        assert 200 == (await post(h, large)).status_code
        assert 413 == (await h.client.post("/v1/generations", content=large)).status_code


async def test_the_document_says_what_goes_in_and_out() -> None:
    """The body is a PNG; the answer a generation with a verdict, or a PNG."""
    async with running() as h:
        document: dict[str, Any] = (await h.client.get("/openapi.json")).json()
        operation = document["paths"][REPRODUCE]["post"]
        assert ["image/png"] == list(operation["requestBody"]["content"])
        answer = operation["responses"]["200"]
        assert {"application/json", "image/png"} == set(answer["content"])
        assert "X-Pixels-Matched" in answer["headers"]
