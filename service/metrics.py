"""What Prometheus sees of the API: requests as they end, levels read from the queues when scraped.

A gauge that is counted up and down drifts with the first path that forgets to count down; these
cannot. Base units, prefix `bar_`; the HTTP metrics have the names that common dashboards expect.
No label holds a request id, a class, a seed or anything else that clients can make many of, and
what can be known beforehand is there from the start, at zero. Each metric has one exporter: what
happens where an engine runs stands in `worker_metrics`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
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
from service.errors import STATUSES, QueueUnavailable
from service.job_queue import JobQueue
from service.jobs import JobState, QueueStats, WorkerPhase, WorkerStatus

# A third more series, which nobody asks for in this format.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
UNKNOWN = "unknown"  # model of a request that names none which is served

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ENDPOINTS = {  # what makes jobs, by method and the beginning of the route's pattern
    ("POST", "/v1/generations"): "generations",
    ("PUT", "/v1/generations/{"): "generations",
    ("POST", "/v1/images/generations"): "images",
    ("POST", "/v1/reproduce"): "reproduce",
}
OUTCOMES = {200: "succeeded", 202: "accepted", 429: "refused", 499: "cancelled",
            500: "failed", 503: "refused", 504: "expired"}  # fmt: skip
INVALID = "invalid"  # every other status
PHASES = (JobState.QUEUED, JobState.RUNNING)
CAUSES = ("disconnect", "request", "timeout")


def process_registry(models: Mapping[str, str]) -> CollectorRegistry:
    """Return a registry of one process; `models` are names and revisions."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    registry.register(_Infos(models))
    return registry


def endpoint_of(method: str, handler: str) -> str | None:
    """Return the label of a route that makes jobs, None for another."""
    pattern = handler[: handler.find("{") + 1] or handler
    return ENDPOINTS.get((method, pattern))


def method_label(method: str) -> str:
    """Return an HTTP method, "other" for one that a client has made up."""
    return method if method in METHODS else "other"


class Metrics:
    """The metrics of one API process, whose `models` are names and revisions."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._models = models
        self.registry = registry = process_registry(models)
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests by route, method and status",
            ["handler", "method", "status"],
            registry=registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "Time from a request's arrival to the end of its answer",
            ["handler", "method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._requests = self._counter(
            "bar_requests", "Requests for images, by how they ended", "endpoint", "outcome"
        )
        self._request_seconds = Histogram(
            "bar_request_seconds",
            "Time from a request for images to the end of its answer",
            ["model_name", "endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rejections = self._counter(
            "bar_rejections", "Requests for images that did not become jobs", "reason"
        )
        self._cancellations = self._counter(
            "bar_cancellations", "Jobs stopped before their end on behalf of a client",
            "phase", "cause",
        )  # fmt: skip
        self._start_at_zero()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self.registry)

    def _start_at_zero(self) -> None:
        """Show what may happen before it does: a rate sees the first event only after a zero."""
        for model in self._models:
            for endpoint in sorted(set(ENDPOINTS.values())):
                self._request_seconds.labels(model, endpoint)
                for outcome in {*OUTCOMES.values(), INVALID}:
                    self._requests.labels(model, endpoint, outcome)
            for kind in STATUSES:
                self._rejections.labels(model, kind.code)
            for phase in PHASES:
                for cause in CAUSES:
                    self._cancellations.labels(model, phase, cause)

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        method = method_label(method)
        self._http_requests.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def observe_request(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request for images; `status` is what it would be answered with at its end."""
        model = self._known(model)
        self._requests.labels(model, endpoint, OUTCOMES.get(status, INVALID)).inc()
        self._request_seconds.labels(model, endpoint).observe(seconds)

    def count_rejection(self, model: str, reason: str) -> None:
        """Count a request that did not become a job; `reason` is an error's code."""
        self._rejections.labels(self._known(model), reason).inc()

    def count_cancellation(self, model: str, phase: str, cause: str) -> None:
        """Count a job that was stopped while it was in `phase`, because of one of CAUSES."""
        self._cancellations.labels(self._known(model), phase, cause).inc()

    def _known(self, model: str) -> str:
        return model if model in self._models else UNKNOWN

    async def scrape(self, queues: Mapping[str, JobQueue]) -> bytes:
        """Return the exposition text, its levels read from each model's queue; a queue that is away
        has none."""
        readings = await asyncio.gather(*map(_read, queues.values()))
        return generate_latest(_Scrape(self.registry, dict(zip(queues, readings, strict=True))))


async def _read(queue: JobQueue) -> QueueStats | None:
    try:
        return await queue.stats()
    except QueueUnavailable:
        return None


class _Infos(Collector):
    """What runs."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        family = InfoMetricFamily("bar_model", "The served model", labels=["model_name"])
        for name, revision in self._models.items():
            family.add_metric([name], {"revision": revision})
        yield family
        yield InfoMetricFamily("bar_build", "This software", {"version": __version__})


class _Scrape(Collector):
    """What one scrape returns: what was counted, and one reading of each queue, if it answered."""

    def __init__(
        self, registry: CollectorRegistry, readings: Mapping[str, QueueStats | None]
    ) -> None:
        self._registry = registry
        self._readings = readings
        self._stats = {model: stats for model, stats in readings.items() if stats}

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        up = GaugeMetricFamily("bar_queue_up", "1 if the queue answered", labels=["model_name"])
        for model, reading in self._readings.items():
            up.add_metric([model], reading is not None)
        yield up
        for name, text, read in LEVELS:
            yield self._family(GaugeMetricFamily(name, text, labels=["model_name"]), read)
        for name, text, read in TOTALS:
            yield self._family(CounterMetricFamily(name, text, labels=["model_name"]), read)
        workers = GaugeMetricFamily(
            "bar_workers", "Live workers by phase", labels=["model_name", "phase"]
        )
        ended = CounterMetricFamily(
            "bar_jobs_ended", "Jobs by terminal state", labels=["model_name", "state"]
        )
        memory = GaugeMetricFamily(
            "bar_redis_memory_bytes", "Memory of the queue's server", labels=["model_name", "kind"]
        )
        for model, stats in self._stats.items():
            for kind, num_bytes in stats.server_memory_bytes.items():
                memory.add_metric([model, kind], num_bytes)
            phases = [worker.phase for worker in stats.workers]
            for phase in get_args(WorkerPhase):
                workers.add_metric([model, phase], phases.count(phase))
            for state, count in stats.num_ended.items():
                ended.add_metric([model, state], count)
        yield memory
        yield workers
        yield ended

    def _family(self, family: Any, read: Callable[[QueueStats], float]) -> Metric:
        for model, stats in self._stats.items():
            family.add_metric([model], read(stats))
        metric: Metric = family
        return metric


def _ready(stats: QueueStats) -> list[WorkerStatus]:
    return [worker for worker in stats.workers if worker.phase == "ready"]


Reading = tuple[str, str, Callable[[QueueStats], float]]  # name, text, where it stands

LEVELS: tuple[Reading, ...] = (
    ("bar_jobs_waiting", "Jobs that wait for a slot", lambda s: s.jobs_waiting),
    ("bar_jobs_running", "Jobs that a worker has claimed", lambda s: s.jobs_running),
    ("bar_images_waiting", "Images of waiting jobs", lambda s: s.images_waiting),
    ("bar_images_running", "Images of running jobs", lambda s: s.images_running),
    ("bar_oldest_waiting_age_seconds", "Age of the oldest waiting job; 0 without one",
     lambda s: s.oldest_waiting_s),
    ("bar_queued_steps", "Cost of what waits: images x steps", lambda s: s.cost_waiting),
    ("bar_queue_limit_steps", "Bound of that cost", lambda s: s.max_queued_cost),
    ("bar_dead_letters_kept", "Dead jobs that are kept to be looked at",
     lambda s: s.num_dead_letters),
    ("bar_slots", "Slots of ready workers", lambda s: sum(w.num_slots for w in _ready(s))),
    ("bar_slots_used", "Those of them that hold an image",
     lambda s: sum(w.num_slots - w.free_slots for w in _ready(s))),
    ("bar_last_step_seconds", "Recent step of the slowest ready worker, smoothed",
     lambda s: max((w.step_s for w in _ready(s)), default=0.0)),
)  # fmt: skip

TOTALS: tuple[Reading, ...] = (
    ("bar_jobs_accepted", "Jobs admitted", lambda s: s.num_accepted),
    ("bar_redeliveries", "Claims taken back from lost workers", lambda s: s.num_redelivered),
    ("bar_dead_letters", "Jobs given up because every worker that ran them was lost",
     lambda s: s.num_ended.get(JobState.DEAD, 0)),
)  # fmt: skip
