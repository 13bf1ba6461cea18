"""Traces: where the time of one request went, across the processes that it passed.

A request's trace context comes in with the W3C header `traceparent`, or begins here; it goes on in
the job, through the queue, to the worker, and back in the answer. Here it is only passed on. With a
collector's address (`--otlp-endpoint`) `otel_tracing` records spans; without one OpenTelemetry's
SDK is not even imported.
"""

import re
from collections.abc import Iterable

from service.errors import StartupError
from service.jobs import Claim, JobResult
from service.settings import Settings

# Version 00, and what a later one must begin with; all zeros stand for nothing.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?"
)
_MAX_LENGTH = 512


def read_traceparent(values: Iterable[bytes]) -> str:
    """Return the trace context that a request's headers of that name hold; "" if it is not one."""
    texts = [value.decode("latin-1").strip() for value in values]
    if len(texts) != 1 or len(texts[0]) > _MAX_LENGTH:
        return ""
    match = _TRACEPARENT.fullmatch(texts[0])
    if match is None or (match["more"] and texts[0].startswith("00")):
        return ""
    return f"00-{texts[0][3:55]}"


class RequestTrace:
    """The trace of one request in the API; `traceparent` is handed on to its job."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def end(self, handler: str, status: int) -> None:
        """Note which route answered, and how."""


class JobTrace:
    """The trace of one job in its worker."""

    def share(self, others: Iterable["JobTrace"]) -> None:
        """Note the jobs in whose steps this one takes part from now on."""

    def note_stage(self, stage: str, started: float, ended: float) -> None:
        """Note a stage of the job, between two times of the monotonic clock."""

    def end(self, state: str, result: JobResult | None = None) -> None:
        """Note how the job ended here."""


class Traces:
    """Passes trace contexts on, and records nothing."""

    def request(self, method: str, traceparent: str) -> RequestTrace:  # noqa: ARG002
        """Begin a request that came with `traceparent`, "" without one."""
        return RequestTrace(traceparent)

    def job(self, claim: Claim) -> JobTrace:  # noqa: ARG002 - what records does
        """Begin the run of a job that was just claimed."""
        return JobTrace()

    def close(self) -> None:
        """Hand over what is recorded, for a moment at most."""


def make_traces(settings: Settings, process: str) -> Traces:
    """Return what records traces as `settings` say; `process` tells this process from others.

    Raises: StartupError if OpenTelemetry is needed and not installed.
    """
    if settings.otlp_endpoint is None:
        return Traces()
    try:
        # An extra, and half a second of imports, for those who use it.
        from service.otel_tracing import OtelTraces, otlp_processor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartupError(
            f"--otlp-endpoint needs OpenTelemetry ({error}): pip install 'bar-serve[otel]'"
        ) from None
    processor = otlp_processor(settings.otlp_endpoint)
    return OtelTraces(processor, process, share=settings.trace_share)
