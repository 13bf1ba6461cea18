"""Facts of the metrics: levels are those of the queue at the scrape, events add up."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.errors import QueueUnavailable
from service.jobs import JobTimings, QueueStats, WorkerStatus
from service.memory_queue import MemoryJobQueue
from service.metrics import OUTCOMES, Metrics, endpoint_of, process_registry
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.worker_health import WorkerHealth
from service.worker_metrics import WorkerMetrics
from tests.service.fakes import NUM_STEPS, FakeEngine, fake_info
from tests.service.harness import Harness, running
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MODEL = 'model_name="digits"'
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
FOREIGN = ("process_", "python_")  # of the client library


async def scrape(h: Harness) -> dict[str, float]:
    """Return the samples of /metrics by name and labels."""
    reply = await h.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples_of(reply.text)


def samples_of(text: str) -> dict[str, float]:
    """Return the samples of an exposition by name and labels."""
    found = re.findall(r"^([^#\s].*) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


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


async def test_a_queue_that_is_away_costs_its_levels_alone() -> None:
    """What the process counted is there, and that the queue did not answer."""

    class Away(MemoryJobQueue):
        async def stats(self) -> QueueStats:
            raise QueueUnavailable("the queue's server does not answer; try again later")

    metrics = Metrics({"here": "1", "away": "2"})
    metrics.count_rejection("away", "queue_unavailable")
    policy = QueuePolicy(max_queued_cost=100)
    text = await metrics.scrape({"here": MemoryJobQueue(policy), "away": Away(policy)})
    samples = samples_of(text.decode())
    assert 1 == samples['bar_queue_up{model_name="here"}']
    assert 0 == samples['bar_queue_up{model_name="away"}']
    assert 0 == samples['bar_jobs_waiting{model_name="here"}']
    assert 'bar_jobs_waiting{model_name="away"}' not in samples
    assert 1 == samples['bar_rejections_total{model_name="away",reason="queue_unavailable"}']


async def test_the_servers_memory_is_read_with_the_queue(redis_server: RedisServer) -> None:
    """What it uses, and its limit where it has one."""
    queue = RedisJobQueue(redis_server.url, "memory", QueuePolicy(max_queued_cost=100), name="api")
    async with queue.running():
        text = (await Metrics({"digits": "1"}).scrape({"digits": queue})).decode()
    samples = samples_of(text)
    assert samples[f'bar_redis_memory_bytes{{kind="used",{MODEL}}}'] > 100_000
    assert 1 == samples[f"bar_queue_up{{{MODEL}}}"]


@pytest.mark.parametrize(("method", "handler", "endpoint"), [
    ("POST", "/v1/generations", "generations"),
    ("PUT", "/v1/generations/{generation_id}", "generations"),
    ("POST", "/v1/images/generations", "images"),
    ("POST", "/v1/reproduce", "reproduce"),
    ("GET", "/v1/generations", None),
    ("GET", "/v1/generations/{generation_id}", None),
    ("POST", "/v1/generations/{generation_id}/cancel", None),
    ("GET", "/metrics", None),
    ("POST", "unmatched", None),
])  # fmt: skip
def test_requests_for_images_are_told_from_others(
    method: str, handler: str, endpoint: str | None
) -> None:
    """Polling, cancelling and looking around are no requests for images."""
    assert endpoint == endpoint_of(method, handler)


async def test_requests_are_counted_by_how_they_ended() -> None:
    """Each once, also those that are refused before they are read."""
    async with running(FakeEngine(num_slots=2), max_queued_steps=16 * NUM_STEPS) as h:
        await h.generate(class_id=1)
        await h.generate(class_id=99)
        await h.client.post("/v1/generations", content=b"{", headers={"content-type": "a/b"})
        h.engine.gate.clear()
        late = asyncio.create_task(h.generate(class_id=1, timeout_s=0.05))
        assert 504 == (await late).status_code
        h.engine.gate.set()
        samples = await scrape(h)
    ended = {
        tuple(re.findall('(?:model_name|outcome)="(.*?)"', name)): value
        for name, value in samples.items()
        if name.startswith("bar_requests_total") and 'endpoint="generations"' in name and value
    }
    assert {
        ("digits", "succeeded"): 1,
        ("digits", "invalid"): 1,
        ("unknown", "invalid"): 1,  # what it asked for was never read
        ("digits", "expired"): 1,
    } == ended
    assert 4 == sum(v for n, v in samples.items() if n.startswith("bar_request_seconds_count"))


def test_a_client_cannot_make_up_a_model() -> None:
    """Names that are not served share one label."""
    metrics = Metrics({"digits": "1"})
    for name in ("digits", "a", "b", ""):
        metrics.observe_request(name, "images", 200, 0.1)
        metrics.count_rejection(name, "model_not_found")
    text = generate_latest(metrics.registry).decode()
    assert {"digits", "unknown"} == set(re.findall('model_name="(.*?)"', text))


def test_what_may_happen_is_there_at_zero() -> None:
    """A rate over a counter that appears with its first event would miss it."""
    samples = samples_of(generate_latest(Metrics({"digits": "1"}).registry).decode())
    for outcome in {*OUTCOMES.values(), "invalid"}:
        name = f'bar_requests_total{{endpoint="images",{MODEL},outcome="{outcome}"}}'
        assert 0 == samples[name]
    assert 0 == samples[f'bar_rejections_total{{{MODEL},reason="queue_full"}}']
    assert 0 == samples[f'bar_cancellations_total{{cause="request",{MODEL},phase="queued"}}']


def test_nothing_is_lost_between_threads() -> None:
    """Sums are exact, and no scrape in between sees a histogram that contradicts itself."""
    metrics = Metrics({"digits": "1"})
    health = WorkerHealth(30.0)
    work = WorkerMetrics(metrics.registry, "digits", health)
    timings = JobTimings(queue_s=0.1, generation_s=0.2, decode_s=0.3, encode_s=0.4)
    each, threads = 250, 16

    def count(_: int) -> None:
        for n in range(each):
            metrics.observe_http("/v1/generations", "POST", 200, 0.001 * n)
            metrics.observe_request("digits", "generations", 200, 0.001 * n)
            work.observe_step(0.01, 1 + n % 8, 8)
            work.observe_job(timings, 2, tokens_s=0.2, store_s=0.01)
            if n % 50 == 0:
                check_histograms(generate_latest(metrics.registry).decode())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(count, range(threads)))
    samples = samples_of(generate_latest(metrics.registry).decode())
    total = each * threads
    ended = f'bar_requests_total{{endpoint="generations",{MODEL},outcome="succeeded"}}'
    assert total == samples[ended]
    assert 2 * total == samples[f"bar_images_generated_total{{{MODEL}}}"]
    assert total == samples[f"bar_step_seconds_count{{{MODEL}}}"]
    assert pytest.approx(0.01 * total) == samples[f"bar_gpu_seconds_total{{{MODEL}}}"]
    assert total == samples[f'bar_stage_seconds_count{{{MODEL},stage="store"}}']


def check_histograms(text: str) -> None:
    """Every bucket holds at least what the smaller ones hold, and the last one all."""
    for family in text_string_to_metric_families(text):
        if family.type != "histogram":
            continue
        series: dict[str, list[float]] = {}
        for sample in family.samples:
            key = str(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.name.endswith("_bucket"):
                series.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_count"):
                assert sample.value >= series[key][-1]  # the count is read after the buckets
        assert all(values == sorted(values) for values in series.values())


class Served(MemoryJobQueue):
    """A queue on a server."""

    async def stats(self) -> QueueStats:
        return replace(await super().stats(), server_memory_bytes={"used": 1, "limit": 2})


class Measured(FakeEngine):
    """A fake engine on a GPU."""

    def memory_bytes(self) -> dict[str, int]:
        return {"allocated": 1, "reserved": 2, "free": 3, "total": 4}


async def test_the_document_says_what_is_exported() -> None:
    """Names, types, labels and exporters of docs/metrics.md are those of the processes."""
    async with running(Measured()) as h:
        await h.generate({"accept": "text/event-stream"}, class_id=1, partial_images=1)
        both = (await h.client.get("/metrics")).text
    queue = Served(QueuePolicy(max_queued_cost=100))
    await queue.report(WorkerStatus(name="elsewhere", phase="ready"))
    api = await Metrics({"digits": "1"}).scrape({"digits": queue})
    registry = process_registry({"digits": "1"})
    WorkerMetrics(registry, "digits", WorkerHealth(30.0))
    exporters = {
        "API": set(families(api.decode())),
        "worker": set(families(generate_latest(registry).decode())),
    }
    exported = {
        name: (kind, labels, {who for who, names in exporters.items() if name in names})
        for name, (kind, labels) in (families(both) | families(api.decode(), "bar_redis")).items()
    }
    assert exported == dict(documented())


def families(text: str, prefix: str = "") -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and labels of every metric of ours, by the name that one asks for."""
    all_of_them = text_string_to_metric_families(text)
    parsed = [
        family
        for family in all_of_them
        if family.name.startswith(prefix) and not family.name.startswith(FOREIGN)
    ]
    return {_asked(family): (family.type, _labels(family)) for family in parsed}


def _asked(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _labels(family: Metric) -> frozenset[str]:
    return frozenset(label for sample in family.samples for label in sample.labels) - {"le"}


def documented() -> Iterator[tuple[str, tuple[str, frozenset[str], set[str]]]]:
    """Yield the rows of the document's tables."""
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            name, kind, labels, text, who = (cell.strip() for cell in line.strip("|").split(" | "))
            assert text
            yield (
                name.strip("`"),
                (kind, frozenset(re.findall("`(.*?)`", labels)), set(who.split(", "))),
            )
