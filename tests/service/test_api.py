"""Facts of the HTTP interface, over the application without a socket."""

import asyncio
import base64
import hashlib
import io
import json
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from service import __version__
from service.errors import StartupError
from service.jobs import JobState
from tests.service.fakes import IMAGE_SIZE, FakeEngine, FakePrecision, fake_info
from tests.service.harness import URL, error_of, expected_png, make_service, running

pytestmark = pytest.mark.anyio


async def test_a_json_answer_holds_the_image_and_everything_to_make_it_again() -> None:
    """The default answer has the documented fields, and its PNG is the model's image."""
    async with running() as h:
        reply = await h.generate(class_id=7, seed=1234, metadata={"order": "A-1"})
        assert (200, "application/json") == (reply.status_code, reply.headers["content-type"])
        body = reply.json()
        (image,) = body.pop("data")
        png = base64.b64decode(image.pop("b64_json"))
        assert expected_png(7, 1234) == png
        digest = hashlib.sha256(png).hexdigest()
        assert {
            "index": 0,
            "class_id": 7,
            "class_name": "seven",
            "seed": 1234,
            "sha256": digest,
            "url": None,
        } == image
        job_id = body.pop("id")
        assert job_id.startswith("gen_")
        assert body.pop("links")["self"].endswith(f"/v1/generations/{job_id}")
        assert body.pop("gpu_seconds") >= 0
        assert body.pop("created") > 1_700_000_000
        assert {"queue_s", "generation_s", "decode_s", "encode_s", "total_s"} == set(
            body.pop("timings")
        )
        assert {
            "object": "image.generation",
            "status": "succeeded",
            "model": "digits",
            "model_revision": fake_info().revision,
            "size": f"{IMAGE_SIZE}x{IMAGE_SIZE}",
            "output_format": "png",
            "progress": 1.0,
            "queue_position": None,
            "eta_s": 0.0,
            "error": None,
            "metadata": {"order": "A-1"},
            "warnings": [],
        } == body


@pytest.mark.parametrize(("media_type", "kind"), [
    ("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP"),
])  # fmt: skip
async def test_an_image_accept_header_gives_raw_bytes(media_type: str, kind: str) -> None:
    """One image comes back as itself, its seed, class and ids in headers."""
    async with running() as h:
        reply = await h.generate({"accept": media_type}, class_id=3, seed=9)
        assert (200, media_type) == (reply.status_code, reply.headers["content-type"])
        assert kind == Image.open(io.BytesIO(reply.content)).format
        assert ("9", "3") == (reply.headers["x-seed"], reply.headers["x-class-id"])
        assert reply.headers["x-generation-id"].startswith("gen_")
        assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_output_format_chooses_the_encoding_in_json(kind: str) -> None:
    """`output_format` decides what b64_json holds."""
    async with running() as h:
        body = (await h.generate(class_id=3, output_format=kind)).json()
        content = base64.b64decode(body["data"][0]["b64_json"])
        assert kind.upper() == Image.open(io.BytesIO(content)).format
        assert kind == body["output_format"]


@pytest.mark.parametrize("given", [
    {"class_id": 7}, {"class": 7}, {"class": "7"}, {"class": "seven"}, {"class": "Lucky"},
])  # fmt: skip
async def test_a_class_is_named_by_index_or_name(given: dict[str, Any]) -> None:
    """`class_id` takes an index, `class` an index or a name."""
    async with running() as h:
        (image,) = (await h.generate(seed=1, **given)).json()["data"]
        assert (7, "seven") == (image["class_id"], image["class_name"])


async def test_several_classes_give_num_images_of_each() -> None:
    """`class_ids` multiplies with `num_images`, and seeds run through all of them."""
    async with running() as h:
        data = (await h.generate(class_ids=[4, 2], num_images=2, seed=7)).json()["data"]
        assert [(0, 4, 7), (1, 4, 8), (2, 2, 9), (3, 2, 10)] == [
            (image["index"], image["class_id"], image["seed"]) for image in data
        ]


async def test_seeds_wrap_at_two_to_the_32() -> None:
    """Image i has seed (seed + i) mod 2³², and that seed alone gives the same image."""
    async with running() as h:
        last = 2**32 - 1
        data = (await h.generate(class_id=1, seed=last, num_images=2)).json()["data"]
        assert [last, 0] == [image["seed"] for image in data]
        assert expected_png(1, 0) == base64.b64decode(data[1]["b64_json"])


async def test_a_seed_left_out_is_drawn_and_returned() -> None:
    """Without a seed every request gets another one, and repeating it repeats the image."""
    async with running() as h:
        images = [(await h.generate(class_id=1)).json()["data"][0] for _ in range(3)]
        assert 3 == len({image["seed"] for image in images})
        again = (await h.generate(class_id=1, seed=images[0]["seed"])).json()["data"][0]
        assert images[0] == again


@pytest.mark.parametrize(("given", "sampling"), [
    ({"guidance_scale": 30}, {"guidance_scale": 30}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"randomize_temperature": 2.5}, {"temperature": 2.5}),
    ({"unmask_schedule": [2, 2, 5, 7]}, {"unmask_schedule": (2, 2, 5, 7)}),
    ({"tokens_allocation": [16]}, {"unmask_schedule": (16,)}),
    ({"order": "random"}, {"order": "random"}),
])  # fmt: skip
async def test_each_sampling_setting_reaches_the_model(
    given: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """A setting, or its published name, replaces the model's default and nothing else."""
    async with running() as h:
        reply = await h.generate({"accept": "image/png"}, class_id=5, seed=5, **given)
        assert expected_png(5, 5, **sampling) == reply.content
        assert expected_png(5, 5) != reply.content


async def test_a_full_queue_is_429_with_retry_after() -> None:
    """Beyond the bound requests are refused at once; those within it are answered."""
    async with running(FakeEngine(num_slots=1), max_images=1, max_queued_steps=32) as h:
        h.engine.gate.clear()
        tasks = [asyncio.create_task(h.generate(class_id=1))]
        await h.until(lambda s: s.jobs_running == 1)
        tasks += [asyncio.create_task(h.generate(class_id=1)) for _ in range(2)]
        await h.until(lambda s: s.jobs_waiting == 2)
        refused = await h.generate(class_id=1)
        assert 429 == refused.status_code
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert ("rate_limit_error", "queue_full") == (
            error_of(refused)["type"], error_of(refused)["code"],
        )  # fmt: skip
        h.engine.gate.set()
        assert [200] * 3 == [reply.status_code for reply in await asyncio.gather(*tasks)]


async def test_a_job_that_takes_too_long_is_504_and_leaves_its_slot() -> None:
    """After timeout_s the answer is 504, the job has expired and its slot is free."""
    async with running(FakeEngine(num_slots=1)) as h:
        h.engine.num_steps = 10**9
        reply = await h.generate(class_id=1, timeout_s=0.05)
        assert (504, "deadline_exceeded") == (reply.status_code, error_of(reply)["code"])
        await h.until(lambda s: s.workers[0].free_slots == 1)
        assert 1 == (await h.queue.stats()).num_ended[JobState.EXPIRED]


async def test_requests_before_the_model_is_loaded_are_503() -> None:
    """Until a first image has come out, probes tell live from ready and requests are refused."""
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine, is_ready=False) as h:
        assert 200 == (await h.client.get("/livez")).status_code
        for reply in (await h.client.get("/readyz"), await h.generate(class_id=1)):
            assert (503, "not_ready") == (reply.status_code, error_of(reply)["code"])
            assert 1 <= int(reply.headers["retry-after"])
        engine.gate.set()
        await h.until(lambda s: any(worker.phase == "ready" for worker in s.workers))
        assert 200 == (await h.client.get("/readyz")).status_code


async def test_a_draining_server_finishes_and_refuses() -> None:
    """Once draining it is unready and takes nothing new; what it had accepted is answered."""
    async with running() as h:
        h.engine.gate.clear()
        accepted = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        h.service.api.drain()
        for reply in (await h.client.get("/readyz"), await h.generate(class_id=1)):
            assert (503, "draining") == (reply.status_code, error_of(reply)["code"])
        assert 200 == (await h.client.get("/livez")).status_code
        h.engine.gate.set()
        assert 200 == (await accepted).status_code


async def test_models_are_listed_with_their_defaults_and_limits() -> None:
    """A client can learn everything that a request may hold."""
    async with running(max_images=3) as h:
        listed = (await h.client.get("/v1/models")).json()
        (card,) = listed["data"]
        assert ("list", "model", "digits") == (listed["object"], card["object"], card["id"])
        assert (10, 16, 16, 16, IMAGE_SIZE) == (
            card["num_classes"], card["num_steps"], card["bits_per_token"], card["max_rounds"],
            card["image_size"],
        )  # fmt: skip
        defaults = fake_info().sampling.to_json()
        assert json.loads(json.dumps(defaults)) == card["defaults"]
        assert {"max_images": 3, "max_timeout_s": 600.0} == card["limits"]
        assert card == (await h.client.get("/v1/models/digits")).json()


@pytest.mark.parametrize(("precision", "is_invariant", "expected"), [
    ("float32", True, {"precision": "float32", "is_exact": True, "determinism": "bitwise"}),
    ("bfloat16", False, {"precision": "bfloat16", "is_exact": True, "determinism": "numeric"}),
    ("fp8", True, {"precision": "fp8", "is_exact": False, "determinism": "bitwise"}),
])  # fmt: skip
async def test_a_model_says_how_far_its_images_are_determined(
    precision: str, is_invariant: bool, expected: dict[str, Any]
) -> None:
    """Precision and determinism are the engine's; fp8 is labelled as not exact."""
    engine = FakeEngine()
    engine.precision, engine.batch_invariant = FakePrecision(precision), is_invariant
    async with running(engine) as h:
        assert expected == (await h.client.get("/v1/models/digits")).json()["numerics"]


async def test_numerics_are_unknown_while_the_model_loads() -> None:
    """What "auto" becomes is known once there is an engine."""
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine, is_ready=False) as h:
        assert (await h.client.get("/v1/models/digits")).json()["numerics"] is None


async def test_classes_are_listed_and_searched() -> None:
    """/v1/classes gives all classes in order, or those that match."""
    async with running() as h:
        everything = (await h.client.get("/v1/classes")).json()["data"]
        assert list(range(10)) == [entry["class_id"] for entry in everything]
        found = (await h.client.get("/v1/classes", params={"q": "luck"})).json()["data"]
        expected = {"class_id": 7, "wordnet_id": None, "name": "seven", "names": ["seven", "lucky"]}
        assert expected == found[0]
        assert 2 == len((await h.client.get("/v1/classes?limit=2")).json()["data"])


async def test_version_names_software_and_model() -> None:
    """/version says what runs here."""
    async with running() as h:
        assert {
            "name": "bar-serve",
            "version": __version__,
            "model": "digits",
            "model_revision": fake_info().revision,
        } == (await h.client.get("/version")).json()


async def test_the_openapi_document_says_what_is_answered() -> None:
    """It has image and event answers, and the error envelope for each status, 422 included."""
    async with running() as h:
        document = (await h.client.get("/openapi.json")).json()
        replies = document["paths"][URL]["post"]["responses"]
        images = {"image/png", "image/jpeg", "image/webp"}
        assert {"application/json", "text/event-stream"} | images == set(replies["200"]["content"])
        for status in ("400", "404", "406", "413", "415", "429", "500", "503", "504"):
            schema = replies[status]["content"]["application/json"]["schema"]
            assert "#/components/schemas/ErrorBody" == schema["$ref"]
        mismatch = replies["422"]["content"]["application/json"]["schema"]
        assert "#/components/schemas/ErrorBody" == mismatch["$ref"]
        assert "ValidationError" not in json.dumps(document)
        (example,) = document["components"]["schemas"]["GenerationRequest"]["examples"]
        assert 200 == (await h.generate(**example)).status_code


async def test_the_openapi_document_has_the_bounds_that_mean_something() -> None:
    """An integer's bounds are integers; that it must fit into a machine's word goes without saying,
    and what does not is refused all the same."""
    async with running() as h:
        document = (await h.client.get("/openapi.json")).json()
        fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
        assert {"type": "integer", "minimum": 0} == fields["class_id"]["anyOf"][0]
        seed = fields["seed"]["anyOf"][0]
        assert "0 4294967295" == f"{seed['minimum']} {seed['maximum']}"
        assert {"type": "number", "minimum": 1.0, "maximum": 30.0} == (
            fields["guidance_scale"]["anyOf"][0]
        )
        bodies: list[dict[str, Any]] = [{"class_id": 2**31}, {"class_id": 1, "num_images": 10**12}]
        for body in bodies:
            reply = await h.generate(**body)
            assert 400 == reply.status_code


def test_the_api_does_not_import_torch() -> None:
    """Importing the API, the server and the worker's loop leaves torch unimported."""
    script = (
        "import sys, service.api, service.server, service.worker, service.commands.serve\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_queue_too_small_for_one_request_is_refused_at_the_start() -> None:
    """A bound that the largest request can never meet is a start-up error with both numbers."""
    with pytest.raises(StartupError, match=r"100.*16.*256"):
        make_service(FakeEngine(), max_queued_steps=100)
