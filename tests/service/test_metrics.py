"""Facts of the metrics: levels are those of the queue at the scrape, events add up."""

import asyncio
import re

import pytest

from service import __version__
from tests.service.fakes import NUM_STEPS, FakeEngine, fake_info
from tests.service.harness import Harness, running

pytestmark = pytest.mark.anyio

MODEL = 'model_name="digits"'


async def scrape(h: Harness) -> dict[str, float]:
    """Return the samples of /metrics by name and labels."""
    reply = await h.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        name: float(value)
        for name, value in re.findall(r"^([^#\s].*) (\S+)$", reply.text, re.MULTILINE)
    }


async def test_levels_are_read_from_the_queue() -> None:
    """Waiting, running and used slots are what they are at that moment, and return to zero."""
    async with running(FakeEngine(num_slots=2), max_queued_steps=1000) as h:
        h.engine.gate.clear()
        tasks = [asyncio.create_task(h.generate(class_id=1, num_images=2))]
        await h.until(lambda s: s.jobs_running == 1)
        tasks.append(asyncio.create_task(h.generate(class_id=2, num_images=3)))
        await h.until(lambda s: s.jobs_waiting == 1)
        during = await scrape(h)
        assert {
            "bar_jobs_waiting": 1,
            "bar_jobs_running": 1,
            "bar_images_waiting": 3,
            "bar_images_running": 2,
            "bar_queued_steps": 3 * NUM_STEPS,
            "bar_queue_limit_steps": 1000,
            "bar_slots": 2,
        } == {
            name.partition("{")[0]: during[name]
            for name in (f"bar_{level}{{{MODEL}}}" for level in (
                "jobs_waiting", "jobs_running", "images_waiting", "images_running",
                "queued_steps", "queue_limit_steps", "slots",
            ))
        }  # fmt: skip
        phases = ("loading", "warming_up", "unfit", "ready")
        assert [0, 0, 0, 1] == [during[f'bar_workers{{{MODEL},phase="{p}"}}'] for p in phases]
        assert during[f"bar_oldest_waiting_age_seconds{{{MODEL}}}"] > 0
        h.engine.gate.set()
        await asyncio.gather(*tasks)
        after = await scrape(h)
        for level in ("jobs_waiting", "jobs_running", "images_running", "slots_used"):
            assert 0 == after[f"bar_{level}{{{MODEL}}}"]


async def test_events_add_up() -> None:
    """Images, jobs by end, stages, steps and rejections are counted as they happen."""
    async with running(FakeEngine(num_slots=4)) as h:
        await h.generate(class_id=1, num_images=3)
        await h.generate(class_id=99)
        samples = await scrape(h)
    assert 3 == samples[f"bar_images_generated_total{{{MODEL}}}"]
    assert 1 == samples[f"bar_jobs_accepted_total{{{MODEL}}}"]
    assert 1 == samples[f'bar_jobs_ended_total{{{MODEL},state="succeeded"}}']
    assert 0 == samples[f'bar_jobs_ended_total{{{MODEL},state="failed"}}']
    assert 1 == samples[f'bar_rejections_total{{{MODEL},reason="unknown_class"}}']
    assert NUM_STEPS == samples[f"bar_step_seconds_count{{{MODEL}}}"]
    assert NUM_STEPS * 0.75 == samples[f"bar_batch_fill_ratio_sum{{{MODEL}}}"]
    assert NUM_STEPS == samples[f"bar_batch_size_count{{{MODEL}}}"]
    assert NUM_STEPS * 3 == samples[f"bar_batch_size_sum{{{MODEL}}}"]
    assert 1 == samples[f"bar_queue_seconds_count{{{MODEL}}}"]
    assert 1 == samples[f"bar_generation_seconds_count{{{MODEL}}}"]
    for stage in ("tokens", "decode", "encode", "store"):
        assert 1 == samples[f'bar_stage_seconds_count{{{MODEL},stage="{stage}"}}']


async def test_the_engines_counters_are_read_from_it() -> None:
    """Prefix cache, memory and stages show what the engine had counted at its last step."""
    engine = FakeEngine(num_slots=4)
    async with running(engine) as h:
        engine.num_out_of_memory = 3
        for class_id in (7, 7, 8):
            await h.generate(class_id=class_id)
        samples = await scrape(h)
    # The first image, of class 0, is one of the misses.
    assert 1 == samples[f"bar_prefix_cache_hits_total{{{MODEL}}}"]
    assert 3 == samples[f"bar_prefix_cache_misses_total{{{MODEL}}}"]
    assert 3 == samples[f"bar_out_of_memory_total{{{MODEL}}}"]
    assert 3 * NUM_STEPS == samples[f'bar_engine_stage_seconds_total{{{MODEL},stage="trunk"}}']


async def test_http_metrics_have_their_usual_names() -> None:
    """Dashboards for other services work here too."""
    async with running() as h:
        await h.generate(class_id=1)
        samples = await scrape(h)
    labels = 'handler="/v1/generations",method="POST"'
    assert 1 == samples[f'http_requests_total{{{labels},status="200"}}']
    assert 1 == samples[f"http_request_duration_seconds_count{{{labels}}}"]


async def test_model_and_build_are_named() -> None:
    """Info metrics say what runs, and the process's own metrics are there."""
    async with running() as h:
        samples = await scrape(h)
    assert 1 == samples[f'bar_model_info{{{MODEL},revision="{fake_info().revision}"}}']
    assert 1 == samples[f'bar_build_info{{version="{__version__}"}}']
    assert samples["process_resident_memory_bytes"] > 0
