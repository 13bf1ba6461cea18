"""What Prometheus sees of a worker: steps, jobs and the device, where the engine runs.

Registered beside the API's metrics where both are one process, alone in that of `bar worker`.
Histograms and counters are observed by the worker as things end; levels, and what the engine counts
itself, are read when Prometheus asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service.jobs import EngineCounters, JobTimings
from service.metrics import SECONDS
from service.worker_health import WorkerHealth

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
BATCH_SIZES = tuple(2**n for n in range(11))
TENTHS = tuple(n / 10 for n in range(1, 11))
STAGES = ("tokens", "decode", "encode", "store")


class WorkerMetrics:
    """The metrics of one worker of `model`, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry, model: str, health: WorkerHealth) -> None:
        self._registry, self._model = registry, model
        self._engine = _EngineCollector(model, health)
        registry.register(self._engine)
        self._images = self._counter("bar_images_generated", "Images of jobs that succeeded")
        self._gpu_seconds = self._counter(
            "bar_gpu_seconds", "Time that the device spent on steps of jobs, succeeded or not"
        )
        self._canary_failures = self._counter(
            "bar_canary_failures", "Times that the known image came out wrong"
        )
        self._queue_seconds = self._histogram(
            "bar_queue_seconds", "Time that succeeded jobs waited for a worker", SECONDS
        )
        self._generation_seconds = self._histogram(
            "bar_generation_seconds",
            "Time of succeeded jobs from their claim to the last token of the last image",
            SECONDS,
        )
        self._first_partial_seconds = self._histogram(
            "bar_time_to_first_partial_seconds",
            "Time from a job's admission to its first partial image",
            SECONDS,
        )
        self._stage_seconds = self._stages()
        self._step_seconds = self._histogram(
            "bar_step_seconds", "One step of the engine", STEP_SECONDS
        )
        self._batch_size = self._histogram("bar_batch_size", "Images in a step", BATCH_SIZES)
        self._batch_fill = self._histogram(
            "bar_batch_fill_ratio", "Share of the slots that took part in a step", TENTHS
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)
        return histogram.labels(self._model)

    def _stages(self) -> dict[str, Histogram]:
        histogram = Histogram(
            "bar_stage_seconds",
            "Time of succeeded jobs in each stage",
            ["model_name", "stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        return {stage: histogram.labels(self._model, stage) for stage in STAGES}

    def observe_step(self, seconds: float, num_images: int, num_slots: int) -> None:
        """Record one step of the engine for `num_images` images."""
        self._step_seconds.observe(seconds)
        self._gpu_seconds.inc(seconds)
        self._batch_fill.observe(num_images / num_slots)
        self._batch_size.observe(num_images)

    def observe_job(
        self, timings: JobTimings, num_images: int, *, tokens_s: float, store_s: float
    ) -> None:
        """Record a job that succeeded: its tokens took `tokens_s`, storing its result `store_s`."""
        self._images.inc(num_images)
        self._queue_seconds.observe(timings.queue_s)
        self._generation_seconds.observe(timings.generation_s)
        for stage, seconds in zip(
            STAGES, (tokens_s, timings.decode_s, timings.encode_s, store_s), strict=True
        ):
            self._stage_seconds[stage].observe(seconds)

    def observe_first_partial(self, seconds: float) -> None:
        """Record how long a job's first partial image took from its admission."""
        self._first_partial_seconds.observe(seconds)

    def count_canary_failure(self) -> None:
        """Count a known image that came out wrong."""
        self._canary_failures.inc()

    def watch_engine(
        self,
        description: Mapping[str, str],
        memory_bytes: Callable[[], Mapping[str, int]],
        counters: Callable[[], EngineCounters],
    ) -> None:
        """Read the engine from now on: what it is, its memory on the device, what it counts."""
        self._engine.watch(description, memory_bytes, counters)


class _EngineCollector(Collector):
    """Reads the worker's health and its engine at each scrape."""

    def __init__(self, model: str, health: WorkerHealth) -> None:
        self._model, self._health = model, health
        self._description: Mapping[str, str] | None = None
        self._memory_bytes: Callable[[], Mapping[str, int]] = dict
        self._counters: Callable[[], EngineCounters] = EngineCounters

    def watch(
        self,
        description: Mapping[str, str],
        memory_bytes: Callable[[], Mapping[str, int]],
        counters: Callable[[], EngineCounters],
    ) -> None:
        self._description, self._memory_bytes = description, memory_bytes
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from self._levels()
        yield self._by("bar_startup_seconds", "Time that the start took, or has taken so far",
                       "phase", self._health.startup_s())  # fmt: skip
        yield self._by("bar_gpu_memory_bytes", "Memory of the GPU", "kind", self._memory_bytes())
        counters = self._counters()
        yield self._total("bar_prefix_cache_hits", "Class prefixes that the engine had",
                          counters.prefix_hits)  # fmt: skip
        yield self._total("bar_prefix_cache_misses", "Class prefixes that it had to compute",
                          counters.prefix_misses)  # fmt: skip
        yield self._total("bar_out_of_memory", "Times that it ran out of memory and used less",
                          counters.out_of_memory)  # fmt: skip
        stages = CounterMetricFamily(
            "bar_engine_stage_seconds",
            "Time of the engine in each part, where that can be measured: on a CPU",
            labels=["model_name", "stage"],
        )
        for stage, seconds in counters.stage_s.items():
            stages.add_metric([self._model, stage], seconds)
        yield stages
        engine = InfoMetricFamily("bar_engine", "The engine", labels=["model_name"])
        if self._description is not None:
            engine.add_metric([self._model], dict(self._description))
        yield engine

    def _levels(self) -> Iterator[Metric]:
        health = self._health
        is_ready = health.why_not_ready() is None
        yield self._level("bar_worker_ready", "1 while the worker claims jobs", is_ready)
        yield self._level("bar_stalled_seconds", "Time for which no step has ended although work "
                          "is in flight", health.stalled_s)  # fmt: skip
        is_right, age_s = health.is_canary_right, health.canary_age_s
        has_checked = is_right is not None
        yield self._level("bar_canary_ok", "1 if the known image came out right when it was last "
                          "made, 0 if not", is_right if has_checked else None)  # fmt: skip
        yield self._level("bar_canary_age_seconds", "Time since then",
                          age_s if has_checked else None)  # fmt: skip

    def _level(self, name: str, text: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        if value is not None:
            family.add_metric([self._model], value)
        return family

    def _total(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _by(self, name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name", label])
        for key, value in values.items():
            family.add_metric([self._model, key], value)
        return family
