"""Facts of traces: one request is one trace, from the API through the queue to its steps."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.errors import StartupError
from service.otel_tracing import OtelTraces
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.settings import Settings
from service.tracing import Traces, make_traces, read_traceparent
from tests.service.fakes import NUM_STEPS, FakeEngine
from tests.service.harness import running
from tests.service.redis_server import RedisServer
from tests.service.test_engine_driver import make_image

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{PARENT}-01"
STAGES = ["tokens", "decode", "encode", "store"]


class Recorded(OtelTraces):
    """Keeps spans in memory."""

    def __init__(self, share: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        super().__init__(SimpleSpanProcessor(self.exporter), "test", share)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the finished spans of that name."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def ids(span: ReadableSpan) -> tuple[str, str, str | None]:
    """Return a span's trace, its own id and its parent's, in hexadecimal."""
    assert span.context
    parent = f"{span.parent.span_id:016x}" if span.parent else None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


@pytest.mark.parametrize(("values", "expected"), [
    ([SENT], SENT),
    ([f" {SENT} "], SENT),
    ([f"01-{TRACE}-{PARENT}-01-what.comes"], SENT),
    ([f"cc-{TRACE}-{PARENT}-01"], SENT),
    ([], ""),
    ([SENT, SENT], ""),
    ([f"{SENT}-more"], ""),
    ([f"ff-{TRACE}-{PARENT}-01"], ""),
    ([f"00-{'0' * 32}-{PARENT}-01"], ""),
    ([f"00-{TRACE}-{'0' * 16}-01"], ""),
    ([SENT.upper()], ""),
    (["01-" + "a" * 10_000], ""),
    ([f"{SENT}\r\nx: y"], ""),
])  # fmt: skip
def test_only_a_trace_context_is_taken_over(values: list[str], expected: str) -> None:
    """As W3C has it: what is malformed counts as absent, later versions are read as the first."""
    assert expected == read_traceparent([value.encode() for value in values])


async def test_without_a_collector_the_context_is_passed_on() -> None:
    """To the job and back to the client; where none came there is none."""
    async with running() as h:
        jobs = []
        admit = h.queue.admit

        async def spy(job: Any, **kwargs: Any) -> str:
            jobs.append(job)
            return await admit(job, **kwargs)

        h.queue.admit = spy  # type: ignore[method-assign]
        reply = await h.generate({"traceparent": SENT}, class_id=1)
        assert SENT == reply.headers["traceparent"]
        assert "traceparent" not in (await h.generate(class_id=1)).headers
        assert [SENT, ""] == [job.traceparent for job in jobs]


def test_nothing_is_needed_without_a_collector() -> None:
    """Traces cost those who do not want them nothing, not even installed packages."""
    script = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None\n"
        "from service.commands import serve, worker\n"
        "from service.settings import Settings\n"
        "from service.tracing import make_traces\n"
        "make_traces(Settings.load({}, {}), 'test').close()\n"
        "print('service.otel_tracing' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    assert "False\n" == subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_collector_without_the_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for traces is told what is missing; they are not silently left out."""
    monkeypatch.delitem(sys.modules, "service.otel_tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings.load({"otlp_endpoint": "http://127.0.0.1:4318"}, {})
    with pytest.raises(StartupError, match=r"bar-serve\[otel\]"):
        make_traces(settings, "test")


async def test_a_request_is_one_trace() -> None:
    """The client's context is the root; request, queue, run and stages hang from it, in order."""
    traces = Recorded()
    async with running(FakeEngine(num_slots=2), traces=traces) as h:
        reply = await h.generate({"traceparent": SENT}, class_id=1, num_images=2)
    (request,) = traces.spans("POST /v1/generations")
    (queued,) = traces.spans("queue")
    (run,) = traces.spans("generate")
    stages = [traces.spans(stage)[0] for stage in STAGES]
    assert (TRACE, PARENT) == (ids(request)[0], ids(request)[2])
    assert f"00-{TRACE}-{ids(request)[1]}-01" == reply.headers["traceparent"]
    assert {(TRACE, ids(request)[1])} == {ids(span)[::2] for span in (queued, run)}
    assert {(TRACE, ids(run)[1])} == {ids(span)[::2] for span in stages}
    assert run.attributes
    assert request.attributes
    assert reply.json()["id"] == run.attributes["bar.job"]
    assert (2, NUM_STEPS, 1) == tuple(
        run.attributes[f"bar.{n}"] for n in ("images", "steps", "attempt")
    )
    assert ("succeeded", 200) == (
        run.attributes["bar.state"], request.attributes["http.response.status_code"]
    )  # fmt: skip
    starts = [span.start_time or 0 for span in (request, queued, run, *stages)]
    assert starts == sorted(starts)
    assert (queued.end_time or 0) <= (run.start_time or 0)
    assert (stages[-1].end_time or 0) <= (run.end_time or 0) <= (request.end_time or 0)


async def test_jobs_that_share_steps_are_linked() -> None:
    """Both ways, so that whoever looks at a slow one finds its company; others are not."""
    traces = Recorded()
    async with running(FakeEngine(num_slots=4), traces=traces) as h:
        h.engine.gate.clear()
        tasks = [asyncio.create_task(h.generate(class_id=n)) for n in (1, 2)]
        await h.until(lambda s: s.num_accepted == 2)
        h.engine.gate.set()
        await asyncio.gather(*tasks)
        await h.generate(class_id=3)
    first, second, alone = sorted(traces.spans("generate"), key=lambda span: span.start_time or 0)
    assert [second.context] == [link.context for link in first.links]
    assert [first.context] == [link.context for link in second.links]
    assert not alone.links
    assert 3 == len({ids(span)[0] for span in (first, second, alone)})


async def test_what_goes_wrong_is_an_error_in_its_trace() -> None:
    """A failed step marks run and request; a job whose client left is only dropped."""

    def explode() -> None:
        raise RuntimeError("broken")

    traces = Recorded()
    async with running(FakeEngine(num_slots=2), traces=traces) as h:
        h.engine.fault = explode
        assert 500 == (await h.generate(class_id=1)).status_code
        h.engine.fault = lambda: None
        h.engine.num_steps = 10**9
        leaving = asyncio.create_task(h.generate(class_id=1))
        await h.until(lambda s: s.jobs_running == 1)
        leaving.cancel()
        while len(traces.spans("generate")) < 2:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
    failed, dropped = traces.spans("generate")
    assert StatusCode.ERROR is failed.status.status_code
    assert StatusCode.UNSET is dropped.status.status_code
    assert dropped.attributes
    assert "dropped" == dropped.attributes["bar.state"]
    assert StatusCode.ERROR is traces.spans("POST /v1/generations")[0].status.status_code


async def test_who_decided_not_to_record_is_obeyed() -> None:
    """An unsampled context goes on as such; so do traces beyond the share of those begun here."""
    traces = Recorded(share=0.0)
    async with running(FakeEngine(), traces=traces) as h:
        reply = await h.generate({"traceparent": SENT[:-1] + "0"}, class_id=1)
        assert reply.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert reply.headers["traceparent"].endswith("-00")
        await h.generate(class_id=1)
        assert () == traces.exporter.get_finished_spans()
        await h.generate({"traceparent": SENT}, class_id=1)
    assert 1 == len(traces.spans("generate"))


async def test_probes_and_scrapes_leave_no_traces() -> None:
    """They come every few seconds, for ever."""
    traces = Recorded()
    async with running(FakeEngine(), traces=traces) as h:
        for path in ("/livez", "/readyz", "/metrics"):
            await h.client.get(path)
        await h.client.get("/v1/models")
    assert ["GET /v1/models"] == [span.name for span in traces.exporter.get_finished_spans()]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Run a collector of OTLP over HTTP; yield its address and what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert "/v1/traces" == self.path
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_worker_process_sends_its_part_of_the_trace(redis_server: RedisServer) -> None:
    """What the API wrote into the job arrives at the collector from another process."""
    settings = {"redis-url": redis_server.url, "model": "digits", "worker-port": "0"}
    with collector() as (address, received):
        settings["otlp-endpoint"] = address
        flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.service.worker_under_test", "--fake", "0.0", "--", *flags
        )
        queue = RedisJobQueue(
            redis_server.url, "digits", QueuePolicy(max_queued_cost=1000), name="api"
        )
        try:
            async with queue.running():
                job = replace(make_image(5).job, id=f"gen_{'5' * 24}", traceparent=SENT)
                await queue.admit(job)
                outcome = await queue.wait(job.id)
        finally:
            process.send_signal(signal.SIGTERM)
            assert 0 == await process.wait()
    assert "succeeded" == outcome.state
    resources = [spans for request in received for spans in request.resource_spans]
    named = {a.key: a.value.string_value for r in resources for a in r.resource.attributes}
    assert "bar-serve" == named["service.name"]
    spans = {s.name: s for r in resources for scope in r.scope_spans for s in scope.spans}
    assert {"queue", "generate", *STAGES} == set(spans)
    assert {TRACE} == {span.trace_id.hex() for span in spans.values()}
    assert PARENT == spans["generate"].parent_span_id.hex() == spans["queue"].parent_span_id.hex()


async def test_a_collector_that_is_away_holds_nobody() -> None:
    """Images are made, and the process ends in time."""
    settings = Settings.load({"otlp_endpoint": "http://127.0.0.1:9"}, {})
    traces = make_traces(settings, "test")
    assert type(traces) is not Traces
    async with running(FakeEngine(), traces=traces) as h:
        assert 200 == (await h.generate(class_id=1)).status_code
    closing = threading.Thread(target=traces.close)
    closing.start()
    await asyncio.to_thread(closing.join, 20)
    assert not closing.is_alive()
    # What still tries to send would tell of its failure in the log of another test.
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            await asyncio.to_thread(thread.join, 60)
            assert not thread.is_alive()
