"""Facts of the OpenAI-compatible route, for the unmodified `openai` client on a real socket."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from PIL import Image

from service.jobs import JobState
from tests.service.fakes import IMAGE_SIZE, NUM_STEPS, FakeEngine
from tests.service.harness import Harness, error_of, expected_png, listening, running

pytestmark = pytest.mark.anyio

URL = "/v1/images/generations"


@asynccontextmanager
async def client_of(
    h: Harness, *, max_retries: int = 0, **options: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    """Give the client that a user would make, and nothing else."""
    async with openai.AsyncOpenAI(
        base_url=f"{h.client.base_url}/v1", api_key="none", max_retries=max_retries, **options
    ) as client:
        yield client


@asynccontextmanager
async def asking(
    engine: FakeEngine | None = None, *, max_retries: int = 0, **settings: Any
) -> AsyncIterator[tuple[Harness, openai.AsyncOpenAI]]:
    """Run a service, and give the client of it."""
    async with listening(engine, **settings) as h, client_of(h, max_retries=max_retries) as client:
        yield h, client


async def test_a_prompt_is_a_class() -> None:
    """The client gets the model's images, their seeds, a usage and the class's name."""
    async with asking() as (_, client):
        answer = await client.images.generate(prompt="Lucky", n=2, extra_body={"seed": 5})
        assert answer.data
        assert [expected_png(7, 5), expected_png(7, 6)] == [
            base64.b64decode(image.b64_json or "") for image in answer.data
        ]
        assert ["seven", "seven"] == [image.revised_prompt for image in answer.data]
        assert (f"{IMAGE_SIZE}x{IMAGE_SIZE}", "png", "opaque") == (
            answer.size, answer.output_format, answer.background,
        )  # fmt: skip
        assert answer.usage
        assert (2, 2 * NUM_STEPS, 2 + 2 * NUM_STEPS) == (
            answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens,
        )  # fmt: skip


async def test_settings_come_in_the_extra_body() -> None:
    """Sampling settings are the native ones; with `class_id` the prompt is free text."""
    extra = {"class_id": 3, "seed": 1, "guidance_scale": 4.5, "temperature": 0.5}
    async with asking() as (_, client):
        answer = await client.images.generate(prompt="a lovely three", extra_body=extra)
        assert answer.data
        expected = expected_png(3, 1, guidance_scale=4.5, temperature=0.5)
        assert expected == base64.b64decode(answer.data[0].b64_json or "")


async def test_formats_and_urls() -> None:
    """`output_format` and `response_format` are honoured; a URL gives the same image."""
    async with asking() as (h, client):
        answer = await client.images.generate(
            prompt="1", output_format="webp", output_compression=40
        )
        assert answer.data
        content = base64.b64decode(answer.data[0].b64_json or "")
        assert "WEBP" == Image.open(io.BytesIO(content)).format
        answer = await client.images.generate(
            prompt="1", response_format="url", extra_body={"seed": 9}
        )
        assert answer.data
        assert answer.data[0].b64_json is None
        reply = await h.client.get(answer.data[0].url or "")
        assert expected_png(1, 9) == reply.content


async def test_a_stream_has_partial_images_and_each_image() -> None:
    """The client's own event types: previews counted from 0 for each image, then the images."""
    async with asking(FakeEngine(num_slots=2)) as (_, client):
        stream = await client.images.generate(
            prompt="4", n=2, stream=True, partial_images=2, extra_body={"seed": 3}
        )
        events = [event async for event in stream]
    partials = [e for e in events if e.type == "image_generation.partial_image"]
    assert [0, 0, 1, 1] == sorted(event.partial_image_index for event in partials)
    assert {0, 1} == {event.image_index for event in partials}  # type: ignore[attr-defined]
    done = [e for e in events if e.type == "image_generation.completed"]
    assert [expected_png(4, 3), expected_png(4, 4)] == [
        base64.b64decode(event.b64_json) for event in done
    ]
    assert events[-2:] == done
    assert NUM_STEPS == done[0].usage.output_tokens


async def test_what_has_no_effect_is_said() -> None:
    """Fields without a meaning here are accepted, and named in `warnings`."""
    async with asking() as (_, client):
        answer = await client.images.generate(
            prompt="4", quality="high", style="vivid", user="me", moderation="low",
            background="opaque", size="auto", partial_images=1,
        )  # fmt: skip
        warned: list[str] = answer.warnings  # type: ignore[attr-defined]
        fields = ["quality", "style", "moderation", "user", "partial_images"]
        assert [f"{name} has no effect" for name in fields] == warned


@pytest.mark.parametrize(("given", "param"), [
    ({"prompt": "unicorn"}, "prompt"),
    ({"prompt": "4", "size": "1024x1024"}, "size"),
    ({"prompt": "4", "background": "transparent"}, "background"),
    ({"prompt": "4", "n": 11}, "n"),
    ({"prompt": "4", "extra_body": {"guidance_scale": 0.5}}, "guidance_scale"),
    ({"prompt": "4", "extra_body": {"unmask_schedule": [16, 1]}}, "unmask_schedule"),
    ({"prompt": "4", "extra_body": {"colour": "red"}}, "colour"),
    ({"prompt": "4", "stream": True, "response_format": "url"}, "response_format"),
])  # fmt: skip
async def test_a_wrong_request_is_the_clients_typed_error(
    given: dict[str, Any], param: str
) -> None:
    """The client raises BadRequestError, which names the field."""
    async with asking() as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.generate(**given)
        assert param == caught.value.param
        assert "invalid_request_error" == caught.value.type


async def test_too_many_images_are_n_to_these_clients() -> None:
    """A bound of this server's is told with the name that the client knows."""
    async with asking(max_images=3) as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.generate(prompt="4", n=4)
        assert "n" == caught.value.param


async def test_an_unknown_field_is_answered_with_those_of_this_route() -> None:
    """Each route tells its own fields."""
    async with running() as h:
        reply = await h.client.post(URL, json={"prompt": "4", "colour": "red"})
        assert "prompt" in error_of(reply)["message"]
        assert "num_images" not in error_of(reply)["message"]


async def test_an_unknown_model_is_not_found() -> None:
    """The client raises NotFoundError; the models are those that it can list."""
    async with asking() as (_, client):
        assert ["digits"] == [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="digits"):
            await client.images.generate(prompt="4", model="dall-e-3")


async def test_an_error_in_a_stream_is_raised() -> None:
    """A failure after the stream has begun arrives as the client's APIError."""

    def explode() -> None:
        raise RuntimeError("secret")

    engine = FakeEngine()
    async with asking(engine) as (_, client):
        engine.fault = explode
        stream = await client.images.generate(prompt="4", stream=True)
        with pytest.raises(openai.APIError, match="could not be made"):
            _ = [event async for event in stream]


async def attempts(h: Harness) -> float:
    """Return how many requests of this route were answered so far."""
    lines = (await h.client.get("/metrics")).text.splitlines()
    ours = [line for line in lines if line.startswith("http_requests_total") and URL in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in ours)


async def test_what_would_fail_again_is_not_tried_again() -> None:
    """A failed generation is one request, although the client would retry a 500."""

    def explode() -> None:
        raise RuntimeError("broken")

    engine = FakeEngine()
    async with asking(engine, max_retries=3) as (h, client):
        engine.fault = explode
        with pytest.raises(openai.InternalServerError):
            await client.images.generate(prompt="4")
        assert 1 == await attempts(h)


async def test_a_full_queue_is_tried_again_when_it_says() -> None:
    """429 with Retry-After: the client comes again by itself, and then has its image."""
    engine = FakeEngine(num_slots=1)
    async with asking(engine, max_retries=5, max_images=1, max_queued_steps=NUM_STEPS) as (
        h, client,
    ):  # fmt: skip
        engine.gate.clear()
        for number in (0, 1):
            reply = await h.generate({"prefer": "respond-async"}, class_id=1)
            assert 202 == reply.status_code
            await h.until(lambda s, number=number: (s.jobs_running, s.jobs_waiting) == (1, number))  # type: ignore[misc]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.with_options(max_retries=0).images.generate(prompt="4")
        assert "queue_full" == caught.value.code
        assert "retry-after" in caught.value.response.headers
        engine.gate.set()
        assert (await client.images.generate(prompt="4")).data


async def test_a_client_that_gives_up_frees_its_slot() -> None:
    """A call that is given up closes the connection, and the job is cancelled."""
    engine = FakeEngine(num_slots=1)
    async with asking(engine) as (h, client):
        engine.gate.clear()
        leaving = asyncio.create_task(client.images.generate(prompt="4"))
        await h.until(lambda s: s.jobs_running == 1)
        leaving.cancel()
        await h.until(lambda s: s.num_ended[JobState.CANCELLED] == 1)


async def test_events_are_named_as_their_type() -> None:
    """On the wire each event's name is the type in its data."""
    async with running() as h:
        reply = await h.client.post(URL, json={"prompt": "4", "stream": True, "partial_images": 1})
        names = [line[7:] for line in reply.text.splitlines() if line.startswith("event: ")]
        types = [
            json.loads(line[6:])["type"] for line in reply.text.splitlines() if "data: " in line
        ]
        assert names == types
        assert {"image_generation.partial_image", "image_generation.completed"} == set(names)
