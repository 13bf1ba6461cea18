"""Facts of the worker: one batch for all, nobody's bytes depend on company, failures stay apart."""

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from model.config import ImageRequest
from service.jobs import JobState, QueueStats
from service.memory_queue import MemoryJobQueue
from tests.service.fakes import NUM_STEPS, FakeDecoding, FakeEngine
from tests.service.harness import Harness, error_of, expected_png, running
from tests.service.log_lines import said

pytestmark = pytest.mark.anyio

PNG = {"accept": "image/png"}


def is_idle(stats: QueueStats) -> bool:
    """Say whether nothing runs and all slots are free."""
    (worker,) = stats.workers
    return not stats.jobs_running and worker.free_slots == worker.num_slots


async def held(h: Harness, *bodies: dict[str, Any]) -> list[asyncio.Task[httpx.Response]]:
    """Send requests while the engine stands still; return when all are queued or running."""
    h.engine.gate.clear()
    before = (await h.queue.stats()).num_accepted
    tasks = [asyncio.create_task(h.generate(PNG, **body)) for body in bodies]
    await h.until(lambda s: s.num_accepted == before + len(bodies))
    return tasks


async def test_requests_that_arrive_together_share_steps() -> None:
    """Four requests with settings of their own take the steps of one, and get their own images."""
    bodies: list[dict[str, Any]] = [
        {"class_id": 1, "seed": 1},
        {"class_id": 2, "seed": 2, "guidance_scale": 7.5},
        {"class_id": 3, "seed": 3, "temperature": 0.0, "order": "random"},
        {"class_id": 4, "seed": 4, "unmask_schedule": [8, 8]},
    ]
    async with running(FakeEngine(num_slots=4)) as h:
        tasks = await held(h, *bodies)
        h.engine.gate.set()
        replies = await asyncio.gather(*tasks)
        # The first may have been alone in the step that stood still.
        assert len(h.engine.batch_sizes) <= NUM_STEPS + 1
        assert 4 == max(h.engine.batch_sizes)
        assert [expected_png(**body) for body in bodies] == [r.content for r in replies]


async def test_an_image_is_the_same_alone_and_in_company() -> None:
    """The same request gives the same bytes whoever else is being served."""
    body = {"class_id": 7, "seed": 5}
    async with running(FakeEngine(num_slots=4)) as h:
        alone = (await h.generate(PNG, **body)).content
        others = [{"class_id": n, "seed": 5} for n in range(6)]
        tasks = await held(h, *others, body)
        h.engine.gate.set()
        assert alone == (await asyncio.gather(*tasks))[-1].content


async def test_a_job_joins_at_the_next_step() -> None:
    """A request that comes while others run does not wait for their end."""
    async with running(FakeEngine(num_slots=2, num_steps=200, step_s=0.001)) as h:
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: len(h.engine.batch_sizes) >= 5)
        second = asyncio.create_task(h.generate(class_id=2))
        await asyncio.gather(first, second)
        assert [1, 2, 1] == [n for n, _ in _runs(h.engine.batch_sizes)]


async def test_a_job_may_have_more_images_than_there_are_slots() -> None:
    """Images take slots as they become free and come back in the job's order."""
    async with running(FakeEngine(num_slots=2)) as h:
        reply = await h.generate(class_id=3, seed=10, num_images=5)
        assert [10, 11, 12, 13, 14] == [image["seed"] for image in reply.json()["data"]]
        assert 3 * NUM_STEPS == len(h.engine.batch_sizes)
        assert is_idle(await h.queue.stats())


async def test_the_engine_is_called_from_one_thread_only() -> None:
    """Every call of the engine comes from the same thread, which is not the event loop's."""
    async with running(FakeEngine(num_slots=2)) as h:
        await asyncio.gather(*(h.generate(class_id=n) for n in range(5)))
        assert 1 == len(h.engine.threads)


async def test_a_cancelled_job_leaves_its_slots_at_the_next_step() -> None:
    """Cancelling frees slots for those who wait, although the job was far from its end."""
    async with running(FakeEngine(num_slots=2)) as h:
        h.engine.num_steps = 10**9
        task = asyncio.create_task(h.generate(class_id=1, num_images=2))
        await h.until(lambda s: s.jobs_running == 1)
        task.cancel()
        await h.until(is_idle)
        assert 1 == (await h.queue.stats()).num_ended[JobState.CANCELLED]


async def test_a_failing_step_fails_its_jobs_alone_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Jobs in the engine fail with 500, their slots are free, and the next job runs."""

    def explode() -> None:
        raise RuntimeError("secret detail")

    async with running(FakeEngine(num_slots=2)) as h:
        tasks = await held(h, {"class_id": 1}, {"class_id": 2})
        h.engine.fault = explode
        h.engine.gate.set()
        replies = await asyncio.gather(*tasks)
        assert [500, 500] == [reply.status_code for reply in replies]
        assert "generation_failed" == error_of(replies[0])["code"]
        assert b"secret" not in replies[0].content
        h.engine.fault = lambda: None
        await h.until(is_idle)
        assert 200 == (await h.generate(class_id=1)).status_code
    errors = said(caplog, "bar.worker", logging.ERROR)
    assert 1 <= len(errors) <= 2  # the second request may have joined after the first failed
    assert all("secret detail" in str(record.exc_info) for record in errors)


async def test_a_request_that_the_engine_refuses_does_not_keep_slots() -> None:
    """An error while an image is admitted fails the job and frees what it had."""

    class Refusing(FakeEngine):
        def admit(self, request: ImageRequest) -> int:
            if request.seed == 13:
                raise ValueError("unlucky")
            return super().admit(request)

    async with running(Refusing(num_slots=4)) as h:
        assert 500 == (await h.generate(class_id=1, seed=12, num_images=2)).status_code
        await h.until(is_idle)
        assert 200 == (await h.generate(class_id=1, seed=14)).status_code


async def test_an_image_that_cannot_be_encoded_fails_its_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An encoder's error is answered with 500 and logged, and the worker goes on."""

    class Misshapen(FakeEngine):
        is_broken = False

        def start_decode(self, slots: Sequence[int]) -> FakeDecoding:
            decoding = super().start_decode(slots)
            return replace(decoding, pixels=decoding.pixels[:, :0]) if self.is_broken else decoding

    engine = Misshapen()
    async with running(engine) as h:
        engine.is_broken = True
        assert 500 == (await h.generate(class_id=1)).status_code
        engine.is_broken = False
        assert 200 == (await h.generate(class_id=1)).status_code
    assert ["an image failed"] == [r.message for r in said(caplog, "bar.worker", logging.ERROR)]


async def test_a_failed_decoding_fails_its_job_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Pixels that do not come cost the job that waits for them, wherever the error shows."""

    def explode() -> None:
        raise RuntimeError("secret detail")

    engine = FakeEngine(num_slots=2)
    async with running(engine) as h:
        engine.decode_fault = explode
        assert 500 == (await h.generate(class_id=1)).status_code
        engine.decode_fault, engine.arrival_fault = lambda: None, explode
        assert 500 == (await h.generate(class_id=1, num_images=4)).status_code
        engine.arrival_fault = lambda: None
        await h.until(is_idle)
        assert 200 == (await h.generate(class_id=1)).status_code
    errors = said(caplog, "bar.worker", logging.ERROR)
    assert ["an image failed"] * 2 == [record.message for record in errors]


async def test_pixels_are_waited_for_beside_the_steps() -> None:
    """While the pixels of one image are on their way, the steps of others go on."""
    engine, arrived = FakeEngine(num_slots=2), threading.Event()

    def wait() -> None:
        arrived.wait()

    async with running(engine) as h:
        engine.arrival_fault = wait
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: len(engine.batch_sizes) == NUM_STEPS)
        second = asyncio.create_task(h.generate(class_id=2))
        await h.until(lambda s: len(engine.batch_sizes) == 2 * NUM_STEPS)
        assert not first.done()
        arrived.set()
        assert [200, 200] == [(await task).status_code for task in (first, second)]


async def test_a_higher_priority_is_served_first() -> None:
    """Of requests that wait, the one with the lead gets the slot."""
    async with running(FakeEngine(num_slots=1)) as h:
        h.engine.gate.clear()
        done: list[str] = []

        async def ask(priority: str) -> None:
            assert 200 == (await h.generate(class_id=1, priority=priority)).status_code
            done.append(priority)

        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        tasks = [asyncio.create_task(ask(name)) for name in ("low", "normal", "high")]
        await h.until(lambda s: s.jobs_waiting == 3)
        h.engine.gate.set()
        await asyncio.gather(first, *tasks)
    assert ["high", "normal", "low"] == done


async def test_a_target_leaves_slots_empty() -> None:
    """With a step time that no batch can meet, images are made one after the other."""
    engine = FakeEngine(num_slots=4, step_s=0.002)
    async with running(engine, target_step_s=0.001) as h:
        await asyncio.gather(*(h.generate(class_id=n) for n in range(4)))
    assert 4 * NUM_STEPS == sum(engine.batch_sizes)
    assert max(engine.batch_sizes) <= 2  # the second only to learn what it costs


@pytest.fixture
def _no_log() -> Iterator[None]:
    """Log nothing: pytest keeps what is logged, and with it the frames of every traceback."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_no_log")
async def test_nothing_is_kept_of_what_has_ended() -> None:
    """After any number of requests, whatever became of them, no part of the service has grown."""

    def explode() -> None:
        raise RuntimeError("broken")

    async def load(h: Harness) -> None:
        events = {"accept": "text/event-stream"}
        await h.generate(class_id=1, num_images=3)
        await h.generate(events, class_id=2, partial_images=3)
        await h.generate(PNG, class_id=3)
        await h.generate(class_id=99)
        h.engine.arrival_fault = explode
        await h.generate(class_id=4, num_images=2)
        h.engine.arrival_fault = lambda: None
        h.engine.fault = explode
        await h.generate(class_id=4)
        h.engine.fault = lambda: None
        h.engine.num_steps = 10**9
        leaving = asyncio.create_task(h.generate(class_id=5))
        await h.until(lambda s: s.jobs_running == 1)
        leaving.cancel()
        await h.generate(class_id=5, timeout_s=0.01)
        h.engine.num_steps = NUM_STEPS
        await h.until(is_idle)
        await h.client.get("/metrics")

    async def kept(h: Harness) -> tuple[int, int, int]:
        lines = (await h.client.get("/metrics")).text.splitlines()
        # In which phase a job is caught is chance, of which there are two.
        num_samples = sum(not line.startswith("bar_cancellations") for line in lines)
        gc.collect()
        ours = [
            thing for thing in gc.get_objects() if str(type(thing).__module__).startswith("service")
        ]
        return num_samples, len(ours), len(asyncio.all_tasks())

    async with running(FakeEngine(num_slots=2)) as h:
        assert isinstance(h.queue, MemoryJobQueue)
        # Records of ended jobs are kept on purpose, so many of them and no more.
        h.queue._archive._policy = replace(h.queue.policy, max_records=8)
        await load(h)
        await load(h)
        before = await kept(h)
        for _ in range(20):
            await load(h)
        # Whatever is kept of each round, let alone of each request, adds 20 or more.
        grown = [now - then for now, then in zip(await kept(h), before, strict=True)]
        assert max(grown) < 20


async def test_a_full_worker_passes_on_what_it_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that it has no room for is another's: it says so once, and listens no more."""
    passed_on = []

    async def pass_on(queue: MemoryJobQueue) -> None:
        passed_on.append(queue)

    monkeypatch.setattr(MemoryJobQueue, "pass_on", pass_on)
    async with running(FakeEngine(num_slots=1)) as h:
        h.engine.num_steps = 10**9
        first = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        second = asyncio.create_task(h.generate(class_id=2))
        await h.until(lambda s: s.jobs_waiting == 1 and bool(passed_on))
        num_turns = len(h.engine.batch_sizes)
        await h.until(lambda _: len(h.engine.batch_sizes) > num_turns + 50)
        assert 1 == len(passed_on)
        h.engine.num_steps = NUM_STEPS
        first.cancel()
        assert 200 == (await second).status_code


async def test_timings_say_where_the_time_went() -> None:
    """Stages add up to no more than the whole, and waiting for a slot counts as queueing."""
    async with running(FakeEngine(num_slots=1, num_steps=5, step_s=0.01)) as h:
        tasks = [asyncio.create_task(h.generate(class_id=n)) for n in (1, 2)]
        first, second = [(await task).json()["timings"] for task in tasks]
        assert {"queue_s", "generation_s", "decode_s", "encode_s", "total_s"} == set(first)
        assert first["generation_s"] >= 0.05
        assert second["queue_s"] >= 0.04
        stages = sum(second[name] for name in ("queue_s", "generation_s", "decode_s", "encode_s"))
        assert stages <= second["total_s"] + 0.001


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """Collapse equal neighbours: [1, 1, 2] → [(1, 2), (2, 1)]."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs
