"""What Prometheus sees: events counted as they happen, levels read from the queue when scraped.

A gauge that is counted up and down drifts with the first path that forgets to count down; these
cannot. Base units, prefix `bar_`; the HTTP metrics have the names that common dashboards expect.
No label holds a request id, a class, a seed or anything else that clients can make many of.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

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
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one process, which serves one model, in a registry of their own."""

    def __init__(self, model_name: str, model_revision: str) -> None:
        self._model_name = model_name
        self._registry = registry = CollectorRegistry()
        self._queue = _QueueCollector(model_name, model_revision)
        registry.register(self._queue)
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
        ).labels(model_name)
        self._batch_fill = self._histogram(
            "bar_batch_fill_ratio", "Share of the slots that took part in a step", TENTHS
        ).labels(model_name)
        self._batch_size = self._histogram(
            "bar_batch_size", "Images in a step", BATCH_SIZES
        ).labels(model_name)

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

    def count_rejection(self, reason: str) -> None:
        """Count a request that did not become a job; `reason` is an error's code."""
        self._rejections.labels(self._model_name, reason).inc()

    def count_cancellation(self, phase: str, cause: str) -> None:
        """Count a job that was stopped while it was in `phase`."""
        self._cancellations.labels(self._model_name, phase, cause).inc()

    def observe_step(self, seconds: float, num_images: int, num_slots: int) -> None:
        """Record one step of the engine for `num_images` images."""
        self._step_seconds.observe(seconds)
        self._batch_fill.observe(num_images / num_slots)
        self._batch_size.observe(num_images)

    def observe_job(self, timings: JobTimings, num_images: int) -> None:
        """Record a job that succeeded."""
        self._images.labels(self._model_name).inc(num_images)
        for stage in ("queue", "generation", "decode", "encode"):
            seconds = getattr(timings, f"{stage}_s")
            self._stage_seconds.labels(self._model_name, stage).observe(seconds)

    def render(self, stats: QueueStats) -> bytes:
        """Return the exposition text, its levels from `stats`."""
        self._queue.stats = stats
        return generate_latest(self._registry)


class _QueueCollector(Collector):
    """Turns one reading of the queue into metrics."""

    def __init__(self, model_name: str, model_revision: str) -> None:
        self._model_name = model_name
        self._model_revision = model_revision
        self.stats: QueueStats | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the levels of `stats`; nothing when the registry asks, before any scrape."""
        if self.stats is None:
            return
        for name, (text, value) in _levels(self.stats).items():
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, (text, value) in _totals(self.stats).items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter
        yield self._stage_seconds(self.stats)
        ended = CounterMetricFamily(
            "bar_jobs_ended", "Jobs by terminal state", labels=["model_name", "state"]
        )
        for state, count in self.stats.num_ended.items():
            ended.add_metric([self._model_name, state], count)
        yield ended
        yield InfoMetricFamily(
            "bar_model",
            "The served model",
            {"model_name": self._model_name, "revision": self._model_revision},
        )
        yield InfoMetricFamily("bar_build", "This software", {"version": __version__})

    def _stage_seconds(self, stats: QueueStats) -> Metric:
        seconds: dict[str, float] = defaultdict(float)
        for worker in stats.workers:
            for stage, spent in worker.counters.stage_s.items():
                seconds[stage] += spent
        family = CounterMetricFamily(
            "bar_engine_stage_seconds",
            "Time of the engine in each stage, where it is measured",
            labels=["model_name", "stage"],
        )
        for stage, value in seconds.items():
            family.add_metric([self._model_name, stage], value)
        return family


def _totals(stats: QueueStats) -> dict[str, tuple[str, float]]:
    counters = [worker.counters for worker in stats.workers]
    return {
        "bar_jobs_accepted": ("Jobs admitted", stats.num_accepted),
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


def _levels(stats: QueueStats) -> dict[str, tuple[str, float]]:
    workers = [worker for worker in stats.workers if worker.phase == "ready"]
    num_slots = sum(worker.num_slots for worker in workers)
    num_used = num_slots - sum(worker.free_slots for worker in workers)
    step_s = max((worker.step_s for worker in workers), default=0.0)
    return {
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
