"""What Prometheus sees: events counted as they happen, levels read from the queue when scraped.

A gauge that is counted up and down drifts with the first path that forgets to count down; these
cannot. Base units, prefix `bar_`; the HTTP metrics have the names that common dashboards expect.
No label holds a request id, a class, a seed or anything else that clients can make many of.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service import __version__
from service.jobs import JobTimings, QueueStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
BATCH_SIZES = tuple(2**n for n in range(11))
TENTHS = tuple(n / 10 for n in range(1, 11))
Readings = dict[str, tuple[str, float]]  # text and value by name

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one process in a registry of their own; `models` are names and revisions."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._registry = registry = CollectorRegistry()
        self._queues = _QueueCollector(models)
        registry.register(self._queues)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._requests = Counter(
            "http_requests",
            "HTTP requests by route, method and status",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "http_request_duration_seconds",
            "Time from a request's arrival to the end of its answer",
            ["handler", "method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rejections = self._counter(
            "bar_rejections", "Generation requests that were not admitted", "reason"
        )
        self._cancellations = self._counter(
            "bar_cancellations", "Jobs stopped before their end", "phase", "cause"
        )
        self._images = self._counter("bar_images_generated", "Images of jobs that succeeded")
        self._stage_seconds = self._histogram(
            "bar_stage_seconds", "Time of succeeded jobs in each stage", SECONDS, "stage"
        )
        self._step_seconds = self._histogram(
            "bar_step_seconds", "One step of the engine", STEP_SECONDS
        )
        self._batch_fill = self._histogram(
            "bar_batch_fill_ratio", "Share of the slots that took part in a step", TENTHS
        )
        self._batch_size = self._histogram("bar_batch_size", "Images in a step", BATCH_SIZES)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        names = ["model_name", *labels]
        return Histogram(name, text, names, buckets=buckets, registry=self._registry)

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        method = method if method in METHODS else "other"
        self._requests.labels(handler, method, str(status)).inc()
        self._request_seconds.labels(handler, method).observe(seconds)

    def count_rejection(self, model: str, reason: str) -> None:
        """Count a request that did not become a job; `reason` is an error's code."""
        self._rejections.labels(model, reason).inc()

    def count_cancellation(self, model: str, phase: str, cause: str) -> None:
        """Count a job that was stopped while it was in `phase`."""
        self._cancellations.labels(model, phase, cause).inc()

    def observe_step(self, model: str, seconds: float, num_images: int, num_slots: int) -> None:
        """Record one step of the engine for `num_images` images."""
        self._step_seconds.labels(model).observe(seconds)
        self._batch_fill.labels(model).observe(num_images / num_slots)
        self._batch_size.labels(model).observe(num_images)

    def observe_job(self, model: str, timings: JobTimings, num_images: int) -> None:
        """Record a job that succeeded."""
        self._images.labels(model).inc(num_images)
        for stage in ("queue", "generation", "decode", "encode"):
            seconds = getattr(timings, f"{stage}_s")
            self._stage_seconds.labels(model, stage).observe(seconds)

    def render(self, stats: Mapping[str, QueueStats]) -> bytes:
        """Return the exposition text, its levels from `stats` of each model's queue."""
        self._queues.stats = stats
        return generate_latest(self._registry)


class _QueueCollector(Collector):
    """Turns one reading of each queue into metrics."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._models = models
        self.stats: Mapping[str, QueueStats] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the levels of `stats`; nothing when the registry asks, before any scrape."""
        if not self.stats:
            return
        yield from self._families(GaugeMetricFamily, _levels)
        yield from self._families(CounterMetricFamily, _totals)
        yield self._by("bar_engine_stage_seconds", "stage", _stage_seconds,
                       "Time of the engine in each stage, where it is measured")  # fmt: skip
        yield self._by("bar_jobs_ended", "state", lambda stats: stats.num_ended,
                       "Jobs by terminal state")  # fmt: skip
        for name, revision in self._models.items():
            values = {"model_name": name, "revision": revision}
            yield InfoMetricFamily("bar_model", "The served model", values)
        yield InfoMetricFamily("bar_build", "This software", {"version": __version__})

    def _families(self, kind: Any, read: Callable[[QueueStats], Readings]) -> Iterator[Metric]:
        readings = {model: read(stats) for model, stats in self.stats.items()}
        for name, (text, _) in next(iter(readings.values())).items():
            family = kind(name, text, labels=["model_name"])
            for model, values in readings.items():
                family.add_metric([model], values[name][1])
            yield family

    def _by(
        self, name: str, label: str, read: Callable[[QueueStats], Mapping[Any, float]], text: str
    ) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name", label])
        for model, stats in self.stats.items():
            for key, value in read(stats).items():
                family.add_metric([model, key], value)
        return family


def _stage_seconds(stats: QueueStats) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for worker in stats.workers:
        for stage, spent in worker.counters.stage_s.items():
            seconds[stage] += spent
    return seconds


def _totals(stats: QueueStats) -> Readings:
    counters = [worker.counters for worker in stats.workers]
    return {
        "bar_jobs_accepted": ("Jobs admitted", stats.num_accepted),
        "bar_redeliveries": ("Claims taken back from lost workers", stats.num_redelivered),
        "bar_prefix_cache_hits": (
            "Class prefixes that the engine had",
            sum(counted.prefix_hits for counted in counters),
        ),
        "bar_prefix_cache_misses": (
            "Class prefixes that it had to compute",
            sum(counted.prefix_misses for counted in counters),
        ),
        "bar_out_of_memory": (
            "Times the engine ran out of memory and went on with less",
            sum(counted.out_of_memory for counted in counters),
        ),
    }


def _levels(stats: QueueStats) -> Readings:
    workers = [worker for worker in stats.workers if worker.phase == "ready"]
    num_slots = sum(worker.num_slots for worker in workers)
    num_used = num_slots - sum(worker.free_slots for worker in workers)
    step_s = max((worker.step_s for worker in workers), default=0.0)
    return {
        "bar_dead_letters": ("Jobs given up and kept to be looked at", stats.num_dead_letters),
        "bar_jobs_waiting": ("Jobs that wait for a slot", stats.jobs_waiting),
        "bar_jobs_running": ("Jobs claimed by a worker", stats.jobs_running),
        "bar_images_waiting": ("Images of waiting jobs", stats.images_waiting),
        "bar_images_running": ("Images of running jobs", stats.images_running),
        "bar_oldest_waiting_age_seconds": ("Age of the oldest job", stats.oldest_waiting_s),
        "bar_queued_steps": ("Queued cost: images x steps", stats.cost_waiting),
        "bar_queue_limit_steps": ("Bound of the queued cost", stats.max_queued_cost),
        "bar_workers_ready": ("Workers that take jobs", len(workers)),
        "bar_slots": ("Slots of ready workers", num_slots),
        "bar_slots_used": ("Slots that hold an image", num_used),
        "bar_last_step_seconds": ("Recent time of a step, smoothed", step_s),
    }
