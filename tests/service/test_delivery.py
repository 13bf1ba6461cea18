"""Facts of delivery as events: progress, partial images, one last event, and who leaves."""

import asyncio
import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.jobs import JobState
from tests.service.fakes import NUM_STEPS, FakeEngine
from tests.service.harness import URL, Harness, expected_png, listening, running

pytestmark = pytest.mark.anyio

EVENTS = {"accept": "text/event-stream"}

Event = tuple[str, dict[str, Any]]


def parse(text: str) -> list[Event]:
    """Read the events of a stream: names and data."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            events.append((lines["event"], json.loads(lines["data"])))
    return events


async def events_of(h: Harness, **body: Any) -> list[Event]:
    """Ask for images and return all events."""
    reply = await h.generate(EVENTS, **body)
    assert 200 == reply.status_code
    assert reply.headers["content-type"].startswith("text/event-stream")
    return parse(reply.text)


async def watched_events_of(h: Harness, told: asyncio.Event, **body: Any) -> list[Event]:
    """The same over a connection that shows events as they come; `told` is set at the first."""
    text = ""
    async with h.client.stream("POST", URL, json=body, headers=EVENTS) as reply:
        async for piece in reply.aiter_text():
            text += piece
            told.set()
    return parse(text)


async def test_the_last_event_is_the_json_answer() -> None:
    """`completed` holds what the answer would be without events."""
    async with running() as h:
        name, data = (await events_of(h, class_id=7, seed=1, metadata={"a": "b"}))[-1]
        plain = (await h.generate(class_id=7, seed=1, metadata={"a": "b"})).json()
        for changing in ("id", "created", "timings", "links", "gpu_seconds"):
            data.pop(changing), plain.pop(changing)
        assert ("completed", plain) == (name, data)


async def test_progress_is_exact_and_rises() -> None:
    """Every report is a whole number of tokens, later ones are further, the time left is known."""
    async with running(FakeEngine(num_slots=2, step_s=0.03)) as h:
        events = await events_of(h, class_id=7, num_images=2)
    reports = [data for name, data in events if name == "progress"]
    shares = [report["progress"] for report in reports]
    assert sorted(shares) == shares
    assert all((share * NUM_STEPS).is_integer() for share in shares)
    assert 3 <= len(set(shares))
    assert all(report["eta_s"] > 0 for report in reports if report["progress"])
    assert reports[-1]["eta_s"] < NUM_STEPS
    assert "running" == reports[-1]["status"]
    assert "completed" == events[-1][0]


async def test_a_waiting_job_knows_its_place() -> None:
    """While a job waits, its place in the queue is told; it is None once it runs."""
    engine = FakeEngine(num_slots=1)
    async with listening(engine) as h:
        engine.gate.clear()
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        others = []
        for _ in range(2):
            told = asyncio.Event()
            others.append(asyncio.create_task(watched_events_of(h, told, class_id=2)))
            await told.wait()
        engine.gate.set()
        await first
        streams = [await other for other in others]
    assert [("queued", 1), ("queued", 2)] == [
        (events[0][1]["status"], events[0][1]["queue_position"]) for events in streams
    ]
    for events in streams:
        assert "completed" == events[-1][0]
        running_reports = [d for n, d in events if n == "progress" and d["status"] == "running"]
        assert all(report["queue_position"] is None for report in running_reports)


async def test_partial_images_come_before_the_image() -> None:
    """Each image has the previews asked for, in order, of what was drawn at that share."""
    async with running(FakeEngine(num_slots=2)) as h:
        events = await events_of(h, class_id=7, seed=3, num_images=2, partial_images=3)
    assert "completed" == events[-1][0]
    partials = [data for name, data in events if name == "partial_image"]
    for index in (0, 1):
        own = [partial for partial in partials if partial["index"] == index]
        assert [0.25, 0.5, 0.75] == [partial["progress"] for partial in own]
        pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(partial["b64_json"]))))
            for partial in own
        ]
        assert [4, 8, 12] == [int(image[0, 0, 0]) for image in pixels]
    image = base64.b64decode(events[-1][1]["data"][1]["b64_json"])
    assert expected_png(7, 4) == image


async def test_without_events_partial_images_are_not_made() -> None:
    """A plain answer says that they have no effect, and the engine makes none."""
    engine = FakeEngine()
    engine.preview = None  # type: ignore[method-assign, assignment]
    async with running(engine) as h:
        (warning,) = (await h.generate(class_id=1, partial_images=2)).json()["warnings"]
        assert "partial_images" in warning


async def test_an_error_is_the_last_event() -> None:
    """A failure after the stream has begun arrives in the usual envelope."""

    def explode() -> None:
        raise RuntimeError("secret detail")

    engine = FakeEngine()
    async with running(engine) as h:
        engine.fault = explode
        name, data = (await events_of(h, class_id=1))[-1]
    assert ("error", "generation_failed") == (name, data["error"]["code"])
    assert "secret" not in json.dumps(data)


async def test_a_stream_ends_when_its_time_is_up() -> None:
    """The job is stopped after timeout_s, and the stream says so."""
    async with running(FakeEngine(num_slots=1)) as h:
        h.engine.num_steps = 10**9
        name, data = (await events_of(h, class_id=1, timeout_s=0.05))[-1]
        assert ("error", "deadline_exceeded") == (name, data["error"]["code"])
        await h.until(lambda s: s.workers[0].free_slots == 1)


async def test_a_bad_request_is_refused_before_the_stream() -> None:
    """What is wrong with a request is said with a status."""
    async with running() as h:
        assert 400 == (await h.generate(EVENTS, class_id=99)).status_code


async def test_leaving_a_stream_cancels_its_job() -> None:
    """Closing the connection frees the slots, though nothing is being sent."""
    async with listening(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        async with h.client.stream("POST", URL, json={"class_id": 1}, headers=EVENTS) as reply:
            lines = reply.aiter_lines()
            while await anext(lines) != "event: progress":
                pass
        await h.until(lambda s: s.num_ended[JobState.CANCELLED] == 1)
        h.engine.gate.set()
        await h.until(lambda s: s.workers[0].free_slots == 1)
        assert 200 == (await h.generate(class_id=1)).status_code
