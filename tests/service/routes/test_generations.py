"""Facts of `/v1/generations` for clients that come back: later answers, ids, lists, streams."""

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from service.jobs import JobState
from service.schemas import GenerationRequest
from service.settings import Settings
from service.submission import Asking, make_job
from tests.service.fakes import NUM_STEPS, FakeEngine, fake_info
from tests.service.harness import URL, Harness, error_of, expected_png
from tests.service.redis_harness import running_on
from tests.service.redis_server import RedisServer
from tests.service.routes.conftest import Services

pytestmark = pytest.mark.anyio

ASYNC = {"prefer": "respond-async"}
EVENTS = {"accept": "text/event-stream"}
MINE = "order-2026-0001"
SETTINGS = Settings.load({}, {})


@asynccontextmanager
async def held(services: Services, **settings: Any) -> AsyncIterator[Harness]:
    """Run a service of one slot whose engine stands still until `h.engine.gate` is set."""
    async with services.running(FakeEngine(num_slots=1), **settings) as h:
        h.engine.gate.clear()
        yield h


async def ended(h: Harness, path: str) -> dict[str, Any]:
    """Wait for a generation's end; return what is then told of it."""
    body: dict[str, Any] = (await h.client.get(path, params={"wait": 20})).json()
    assert body["status"] not in ("queued", "running")
    return body


async def test_respond_async_is_accepted_and_fetched_later(services: Services) -> None:
    """202 says where the generation is; there it is queued, runs and then holds its images."""
    async with held(services) as h:
        reply = await h.generate(ASYNC, class_id=7, seed=3, metadata={"order": "A"})
        assert (202, "respond-async") == (reply.status_code, reply.headers["preference-applied"])
        path, body = reply.headers["location"], reply.json()
        assert f"{URL}/{body['id']}" == path
        assert [(7, 3, None, None)] == [
            (d["class_id"], d["seed"], d["b64_json"], d["sha256"]) for d in body["data"]
        ]
        assert body["timings"] is None
        assert {"self", "events", "cancel"} == set(body["links"])
        await h.until(lambda s: s.jobs_running == 1)
        waiting = await h.generate(ASYNC, class_id=1)
        queued = (await h.client.get(waiting.headers["location"])).json()
        assert ("queued", 1, 0.0) == (
            queued["status"], queued["queue_position"], queued["progress"],
        )  # fmt: skip
        assert "running" == (await h.client.get(path)).json()["status"]
        h.engine.gate.set()
        done = await ended(h, path)
    assert ("succeeded", 1.0, {"order": "A"}) == (
        done["status"], done["progress"], done["metadata"],
    )  # fmt: skip
    digest = hashlib.sha256(expected_png(7, 3)).hexdigest()
    assert digest == done["data"][0]["sha256"]
    assert done["timings"]["total_s"] >= done["timings"]["generation_s"] > 0


async def test_a_preferred_wait_ends_with_images_or_with_202(services: Services) -> None:
    """`wait=N` answers 200 if the images are made by then, and 202 if not."""
    async with held(services) as h:
        reply = await h.generate({"prefer": "wait=0"}, class_id=1)
        assert (202, "wait=0") == (reply.status_code, reply.headers["preference-applied"])
        h.engine.gate.set()
        reply = await h.generate({"prefer": "respond-async, wait=20"}, class_id=1)
        assert (200, "succeeded") == (reply.status_code, reply.json()["status"])
        assert "location" not in reply.headers
        raw = await h.generate({"prefer": "wait=20", "accept": "image/png"}, class_id=1, seed=5)
        assert expected_png(1, 5) == raw.content


async def test_content_is_the_image_and_never_changes(services: Services) -> None:
    """It has an ETag, may be kept for ever, and is not sent to those who have it."""
    async with services.running() as h:
        reply = await h.generate(class_id=2, num_images=2, seed=9, response_format="url")
        data = reply.json()["data"]
        assert [None, None] == [image["b64_json"] for image in data]
        for index, image in enumerate(data):
            content = await h.client.get(image["url"])
            assert expected_png(2, 9 + index) == content.content
            assert image["sha256"] == content.headers["etag"].strip('"')
            assert "immutable" in content.headers["cache-control"]
            assert "image/png" == content.headers["content-type"]
            assert str(9 + index) == content.headers["x-seed"]
        have = {"if-none-match": f'"x", W/{content.headers["etag"]}'}
        again = await h.client.get(image["url"], headers=have)
        assert (304, b"") == (again.status_code, again.content)
        missing = await h.client.get(reply.json()["links"]["self"] + "/content?index=2")
        assert (404, "not_found") == (missing.status_code, error_of(missing)["code"])


async def test_links_begin_where_clients_reach_the_server(services: Services) -> None:
    """A public URL that is configured wins over the address of the request."""
    async with services.running(public_url="https://images.example/bar/") as h:
        body = (await h.generate(class_id=2, response_format="url")).json()
        assert body["data"][0]["url"].startswith(f"https://images.example/bar{URL}/{body['id']}/")


async def test_content_of_what_has_not_ended_is_not_found(services: Services) -> None:
    """There is no image yet, and the answer says when to come again."""
    async with held(services) as h:
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        reply = await h.client.get(f"{path}/content")
        assert (404, "not_ended") == (reply.status_code, error_of(reply)["code"])


async def test_cancelling_stops_a_generation_for_good(services: Services) -> None:
    """202 the first time, 200 from then on; the slot is free and the content is gone."""
    async with held(services) as h:
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        await h.until(lambda s: s.jobs_running == 1)
        reply = await h.client.post(f"{path}/cancel")
        assert (202, "cancelled") == (reply.status_code, reply.json()["status"])
        assert "cancelled" == reply.json()["error"]["code"]
        assert 200 == (await h.client.delete(path)).status_code
        content = await h.client.get(f"{path}/content")
        assert (410, "cancelled") == (content.status_code, error_of(content)["code"])
        h.engine.gate.set()
        await h.until(lambda s: s.workers[0].free_slots == 1)
        assert 404 == (await h.client.delete(f"{URL}/gen_{'0' * 24}")).status_code


async def test_who_waits_for_a_cancelled_generation_is_told(services: Services) -> None:
    """A generation that another request cancels is 410, which no client tries again."""
    async with held(services) as h:
        waiting = asyncio.create_task(h.client.put(f"{URL}/{MINE}", json={"class_id": 1}))
        await h.until(lambda s: s.jobs_running == 1)
        assert 202 == (await h.client.delete(f"{URL}/{MINE}")).status_code
        reply = await waiting
        assert (410, "cancelled") == (reply.status_code, error_of(reply)["code"])


async def test_put_makes_a_generation_once(services: Services) -> None:
    """The same request under the same id attaches to it; another request is refused."""
    async with held(services) as h:
        body = {"class_id": 3}
        tasks = [asyncio.create_task(h.client.put(f"{URL}/{MINE}", json=body)) for _ in range(3)]
        await h.until(lambda s: s.jobs_running == 1)
        other = await h.client.put(f"{URL}/{MINE}", json={"class_id": 4})
        assert (422, "idempotency_mismatch") == (other.status_code, error_of(other)["code"])
        h.engine.gate.set()
        replies = [reply.json() for reply in await asyncio.gather(*tasks)]
        assert [MINE] * 3 == [reply["id"] for reply in replies]
        assert 1 == len({reply["data"][0]["sha256"] for reply in replies})
        assert 1 == (await h.queue.stats()).num_accepted
        later = (await h.client.put(f"{URL}/{MINE}", json=body)).json()
        assert replies[0]["data"] == later["data"]
        assert 1 == (await h.queue.stats()).num_accepted


async def test_a_repeated_request_may_ask_for_another_form_of_the_same(services: Services) -> None:
    """The Accept header chooses an answer, not other images; another format is another request."""
    async with services.running() as h:
        path, body = f"{URL}/{MINE}", {"class_id": 3, "seed": 5}
        assert 200 == (await h.client.put(path, json=body)).status_code
        raw = await h.client.put(path, json=body, headers={"accept": "image/png"})
        assert expected_png(3, 5) == raw.content
        other = await h.client.put(path, json=body, headers={"accept": "image/webp"})
        assert 422 == other.status_code


async def test_head_says_what_get_would(services: Services) -> None:
    """Whoever asks for headers alone, as load balancers do, gets the same ones."""
    async with services.listening() as h:
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        await ended(h, path)
        for asked in ("/livez", "/readyz", "/v1/models", path, f"{path}/content"):
            told = [await h.client.request(method, asked) for method in ("GET", "HEAD")]
            assert [200, 200] == [reply.status_code for reply in told]
            assert b"" == told[1].content
            lengths = {reply.headers["content-length"] for reply in told}
            assert 1 == len(lengths)
        assert 405 == (await h.client.head("/v1/images/generations")).status_code


@pytest.mark.parametrize("job_id", ["short", "has space in it", "x" * 65, "semi;colon;;"])
async def test_an_id_has_a_pattern(services: Services, job_id: str) -> None:
    """An id of other characters, too short or too long, is refused; nothing is found under it."""
    async with services.running() as h:
        reply = await h.client.put(f"{URL}/{job_id}", json={"class_id": 1})
        assert (400, "job_id") == (reply.status_code, error_of(reply)["param"])
        assert 404 == (await h.client.get(f"{URL}/{job_id}")).status_code


async def test_a_header_may_come_in_several_lines(services: Services) -> None:
    """Prefer and Accept are lists: their lines count together, in whichever the word stands."""
    async with services.running() as h:
        for lines in (["respond-async", "wait=20"], ["return=minimal", "respond-async, wait=20"]):
            reply = await h.client.post(
                URL, json={"class_id": 3}, headers=[("prefer", line) for line in lines]
            )
            assert (200, "respond-async, wait=20") == (
                reply.status_code, reply.headers["preference-applied"],
            )  # fmt: skip
        for lines in (["text/html", "image/png"], ["image/webp;q=0.5", "image/png", "text/html"]):
            reply = await h.client.post(
                URL, json={"class_id": 3}, headers=[("accept", line) for line in lines]
            )
            assert (200, "image/png") == (reply.status_code, reply.headers["content-type"])


async def test_an_idempotency_key_makes_a_repeated_request_the_same(services: Services) -> None:
    """The images are made once; another body under the key is refused."""
    async with services.running() as h:
        key = {"idempotency-key": "order-1"}
        replies = [(await h.generate(key, class_id=3)).json() for _ in range(2)]
        assert replies[0]["data"] == replies[1]["data"]
        assert replies[0]["id"] == replies[1]["id"]
        assert 1 == (await h.queue.stats()).num_accepted
        other = await h.generate(key, class_id=4)
        assert (422, "idempotency_mismatch") == (other.status_code, error_of(other)["code"])


@pytest.mark.parametrize("key", ["", "has space", "x" * 256])
async def test_a_bad_idempotency_key_is_refused(services: Services, key: str) -> None:
    """Keys are visible ASCII of at most 255 characters."""
    async with services.running() as h:
        reply = await h.generate({"idempotency-key": key}, class_id=3)
        assert (400, "idempotency-key") == (reply.status_code, error_of(reply)["param"])


async def test_a_repeatable_request_survives_its_client(services: Services) -> None:
    """Without a key a client that leaves cancels its job; with one, the job goes on."""
    async with services.listening(FakeEngine(num_slots=2)) as h:
        h.engine.gate.clear()
        mine = h.client.put(f"{URL}/{MINE}", json={"class_id": 2, "seed": 4})
        for number, request in enumerate((h.generate(class_id=1), mine), start=1):
            leaving = asyncio.create_task(request)
            await h.until(lambda s, number=number: s.num_accepted == number)  # type: ignore[misc]
            leaving.cancel()
        await h.until(lambda s: s.num_ended[JobState.CANCELLED] == 1)
        h.engine.gate.set()
        assert "succeeded" == (await ended(h, f"{URL}/{MINE}"))["status"]


async def test_generations_are_listed_the_newest_first(services: Services) -> None:
    """They can be filtered by state and read page by page; images' contents are left out."""
    async with services.running() as h:
        ids = [(await h.generate(ASYNC, class_id=n)).json()["id"] for n in range(5)]
        for job_id in ids:
            await ended(h, f"{URL}/{job_id}")
        page = (await h.client.get(URL, params={"limit": 2})).json()
        assert ("list", True) == (page["object"], page["has_more"])
        assert ids[:-3:-1] == [job["id"] for job in page["data"]]
        assert [None] == [image["b64_json"] for image in page["data"][0]["data"]]
        rest = (await h.client.get(URL, params={"after": ids[3]})).json()
        assert (ids[2::-1], False) == ([job["id"] for job in rest["data"]], rest["has_more"])
        none = (await h.client.get(URL, params={"status": "failed"})).json()
        assert [] == none["data"]
        assert 404 == (await h.client.get(URL, params={"after": "gen_nothing"})).status_code


async def test_a_failed_generation_says_why(services: Services) -> None:
    """Its state is told with the error that a waiting client would have had."""

    def explode() -> None:
        raise RuntimeError("secret detail")

    async with services.running() as h:
        h.engine.fault = explode
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        body = await ended(h, path)
        assert ("failed", "generation_failed") == (body["status"], body["error"]["code"])
        assert "secret" not in json.dumps(body)
        assert [body["id"]] == [
            job["id"] for job in (await h.client.get(f"{URL}?status=failed")).json()["data"]
        ]


async def test_a_result_that_has_expired_is_gone(services: Services) -> None:
    """The record outlives the images: 410, and the state is still told."""
    async with services.listening(result_ttl_s=1) as h:
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        await ended(h, path)
        while (reply := await h.client.get(f"{path}/content")).status_code == 200:
            await h.client.get(path, params={"wait": 0})
        assert (410, "result_expired") == (reply.status_code, error_of(reply)["code"])


def ids_of(text: str) -> list[str]:
    """Return the ids of a stream's events."""
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


async def test_a_stream_goes_on_where_it_broke(services: Services) -> None:
    """With the id of the last event that arrived, what was seen is not told again."""
    async with services.running(FakeEngine(num_slots=1)) as h:
        body = {"class_id": 1, "partial_images": 3}
        path = (await h.generate(ASYNC, **body)).headers["location"]
        await ended(h, path)
        whole = (await h.client.get(f"{path}/events")).text
        assert 3 == whole.count("event: partial_image")
        assert 1 == whole.count("event: completed")
        seen = ids_of(whole)[1]
        rest = (await h.client.get(f"{path}/events", headers={"last-event-id": seen})).text
        assert 1 == rest.count("event: partial_image")
        assert 1 == rest.count("event: completed")
        odd = (await h.client.get(f"{path}/events", headers={"last-event-id": "what"})).text
        assert whole.count("\nevent: ") == odd.count("\nevent: ")


async def test_leaving_a_watched_stream_does_not_stop_it(services: Services) -> None:
    """Events of a generation may be watched by anyone of its owner, and left."""
    async with services.listening(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        async with h.client.stream("GET", f"{path}/events") as reply:
            lines = reply.aiter_lines()
            while await anext(lines) != "event: progress":
                pass
        h.engine.gate.set()
        assert "succeeded" == (await ended(h, path))["status"]


async def test_another_clock_takes_no_time_from_a_generation(services: Services) -> None:
    """To follow a generation, or to ask for it again, ends it no earlier than the queue does: who
    made it may have had another clock, or may have made it long ago and tried it again."""
    async with held(services) as h:
        body = {"class_id": 3}
        asking = Asking(job_id=MINE, is_awaited=False)
        made = make_job(GenerationRequest.model_validate(body), fake_info(), SETTINGS, asking)
        await h.queue.admit(replace(made, created_at=made.created_at - 1e5), is_awaited=False)
        following = asyncio.create_task(h.client.get(f"{URL}/{MINE}/events"))
        again = asyncio.create_task(h.client.put(f"{URL}/{MINE}", json=body))
        await h.until(lambda s: s.jobs_running == 1)
        await asyncio.sleep(0.05)
        assert 0 == (await h.queue.stats()).num_ended[JobState.EXPIRED]
        h.engine.gate.set()
        assert "event: completed" in (await following).text
        assert "succeeded" == (await again).json()["status"]


async def test_everybody_who_waits_is_answered_when_the_server_stops(services: Services) -> None:
    """When the grace time is over, who follows a generation, or would come back for it, is told."""
    engine = FakeEngine(num_slots=1)
    async with services.listening(engine, shutdown_grace_s=0.1) as h:
        engine.gate.clear()
        path = (await h.generate(ASYNC, class_id=1)).headers["location"]
        polling = asyncio.create_task(h.client.get(path, params={"wait": 60}))
        following = asyncio.create_task(h.client.get(f"{path}/events"))
        waiting = asyncio.create_task(h.generate({"prefer": "wait=60"}, class_id=1))
        await h.until(lambda s: s.num_accepted == 2)
        for _ in range(20):  # in the same event loop: what was sent before is read by then
            await h.client.get("/livez")
        signal.raise_signal(signal.SIGTERM)
        assert 200 == (await polling).status_code
        assert '"draining"' in (await following).text
        reply = await waiting
        # Where the generation outlives the server, there is somewhere to come back to.
        assert reply.status_code == 202 or error_of(reply)["code"] == "draining"


async def test_who_waits_for_what_the_server_loses_asks_again(redis_server: RedisServer) -> None:
    """A preferred wait for a generation that is lost meanwhile is 503, and not an unknown route."""
    redis_server.flush()
    async with running_on(redis_server.url, FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        waiting = asyncio.create_task(h.generate({"prefer": "wait=30"}, class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        redis_server.flush()
        reply = await waiting
        assert (503, "job_lost") == (reply.status_code, error_of(reply)["code"])
        assert "1" == reply.headers["retry-after"]


async def test_a_deadline_that_cannot_be_met_is_429(services: Services) -> None:
    """What waits takes longer than the request allows for: it is refused at once."""
    async with services.running(FakeEngine(num_slots=1, step_s=0.05)) as h:
        await h.generate(class_id=1)
        await h.until(lambda s: s.workers[0].step_s > 0)
        h.engine.gate.clear()
        waiting = [(await h.generate(ASYNC, class_id=1)) for _ in range(3)]
        assert [202] * 3 == [reply.status_code for reply in waiting]
        reply = await h.generate(class_id=1, timeout_s=0.05 * NUM_STEPS / 2)
        assert (429, "deadline_unreachable") == (reply.status_code, error_of(reply)["code"])
        assert 1 <= int(reply.headers["retry-after"])
        for accepted in waiting:
            await h.client.delete(accepted.headers["location"])
