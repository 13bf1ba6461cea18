"""Spans for OpenTelemetry: request, queue, run, and the stages of the run.

    POST /v1/generations            server span, in the API
    ├── queue                       in the worker, from admission to claim
    └── generate                    in the worker, linked to the jobs whose steps it shared
        └── tokens, decode, encode, store

The one module that imports OpenTelemetry, and only where traces are wanted (`tracing`). Spans are
made with explicit parents and times: a job is no call stack, many of them share each step, and the
monotonic times of the worker's own measurements are turned into those of the wall clock here.
"""

import threading
import time
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.jobs import Claim, JobResult
from service.tracing import JobTrace, RequestTrace, Traces

CLOSING_S = 5.0
_PROPAGATOR = TraceContextTextMapPropagator()


def otlp_processor(endpoint: str) -> SpanProcessor:
    """Return what sends spans to the collector at `endpoint`, in batches, from a thread."""
    path = "/v1/traces"
    url = endpoint.rstrip("/")
    return BatchSpanProcessor(OTLPSpanExporter(url if url.endswith(path) else url + path))


class OtelTraces(Traces):
    """Records spans with `processor`: of a `share` of the traces that begin here, and of those that
    came sampled."""

    def __init__(self, processor: SpanProcessor, process: str, share: float = 1.0) -> None:
        resource = Resource.create(
            {SERVICE_NAME: "bar-serve", SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: process}
        )
        sampler = ParentBased(TraceIdRatioBased(share))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bar-serve", __version__)

    def request(self, method: str, traceparent: str) -> RequestTrace:
        span = self._tracer.start_span(
            method,
            _context(traceparent),
            SpanKind.SERVER,
            {"http.request.method": method},
        )
        return _OtelRequest(span, method)

    def job(self, claim: Claim) -> JobTrace:
        return _OtelJob(self._tracer, claim)

    def close(self) -> None:
        # By itself it would wait half a minute for a collector that is away.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSING_S)


class _OtelRequest(RequestTrace):
    def __init__(self, span: Span, method: str) -> None:
        super().__init__(_traceparent(span))
        self._span, self._method = span, method

    def end(self, handler: str, status: int) -> None:
        span = self._span
        span.update_name(f"{self._method} {handler}")
        span.set_attributes({"http.route": handler, "http.response.status_code": status})
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class _OtelJob(JobTrace):
    def __init__(self, tracer: Tracer, claim: Claim) -> None:
        self._tracer = tracer
        # One moment on both clocks.
        self._wall_ns, self._clock_s = time.time_ns(), time.monotonic()
        job, parent = claim.job, _context(claim.job.traceparent)
        queued = self._wall_ns - round(claim.queue_s * 1e9)
        waited = tracer.start_span("queue", parent, attributes=_ids(claim), start_time=queued)
        waited.end(self._wall_ns)
        self._span = tracer.start_span(
            "generate",
            parent,
            SpanKind.CONSUMER,
            {
                **_ids(claim),
                "bar.images": len(job.images),
                "bar.steps": job.num_steps,
                "bar.attempt": claim.attempt,
            },
            start_time=self._wall_ns,
        )

    def share(self, others: Iterable[JobTrace]) -> None:
        for other in others:
            assert isinstance(other, _OtelJob)
            self._span.add_link(other._span.get_span_context())  # noqa: SLF001 - of the same class
            other._span.add_link(self._span.get_span_context())  # noqa: SLF001

    def note_stage(self, stage: str, started: float, ended: float) -> None:
        context = set_span_in_context(self._span)
        span = self._tracer.start_span(stage, context, start_time=self._ns(started))
        span.end(self._ns(ended))

    def end(self, state: str, result: JobResult | None = None) -> None:
        if not self._span.is_recording():  # it has ended
            return
        self._span.set_attribute("bar.state", state)
        if result is not None:
            self._span.set_attribute("bar.device_s", result.timings.device_s)
        if state in ("failed", "lost"):
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _ns(self, moment_s: float) -> int:
        """Turn a time of the monotonic clock into one since 1970."""
        return self._wall_ns + round((moment_s - self._clock_s) * 1e9)


def _ids(claim: Claim) -> dict[str, str]:
    return {"bar.job": claim.job.id}


def _context(traceparent: str) -> Context:
    # Never the current one: an instrumented library may have set that.
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


def _traceparent(span: Span) -> str:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return carrier["traceparent"]
