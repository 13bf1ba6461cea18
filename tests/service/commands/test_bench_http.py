"""Facts of `bar bench http`, against a small server of its own on loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.cli import main as bar
from service.commands.bench_http import main

METRICS = """\
# TYPE bar_batch_fill_ratio histogram
bar_batch_fill_ratio_bucket{{le="0.1",model="digits"}} 0.0
bar_batch_fill_ratio_count{{model="digits"}} {steps:.1f}
bar_batch_fill_ratio_sum{{model="digits"}} {fill}
bar_step_seconds_count{{model="digits"}} 999.0
"""


class FakeService(ThreadingHTTPServer):
    """Answers as bar-serve would; `status` says how it answers the n-th generation."""

    daemon_threads = True

    def __init__(self, status: Callable[[int], int]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.status, self.lock = status, threading.Lock()
        self.bodies: list[Any] = []
        self.in_flight, self.most_in_flight, self.num_metrics = 0, 0, 0
        self.together: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeService

    def do_GET(self) -> None:
        if self.path == "/v1/classes":
            self.answer(200, json.dumps({"data": [{"id": n} for n in range(3)]}))
        elif self.path == "/metrics":
            number = self.server.num_metrics = self.server.num_metrics + 1
            self.answer(200, METRICS.format(steps=10.0 * number, fill=7.5 * number))
        else:
            self.answer(404, "")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append((self.path, self.headers["accept"], body))
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        if server.together is not None:
            server.together.wait(timeout=60)
        status = server.status(number)
        with server.lock:
            server.in_flight -= 1
        if status:
            self.answer(status, "image")  # 0: hang up without a word

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


@contextmanager
def service(status: Callable[[int], int] = lambda number: 200) -> Iterator[FakeService]:
    """Run a fake service in a thread."""
    server = FakeService(status)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def measure(
    server: FakeService, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, dict[str, Any]]:
    """Run the benchmark and return its status and report."""
    status = main(["--url", server.url, "--json", *flags])
    out = capsys.readouterr().out
    assert 1 == out.count("\n")
    report: dict[str, Any] = json.loads(out)
    return status, report


def test_a_closed_loop_keeps_its_clients_busy(capsys: pytest.CaptureFixture[str]) -> None:
    """Five clients ask at once, for as many images as asked for, of all classes, as PNG."""
    with service() as server:
        server.together = threading.Barrier(5)
        status, report = measure(server, capsys, "--requests", "20", "--concurrency", "5")
    assert (0, 20, 0) == (status, report["succeeded"], report["failed"])
    assert ("closed, 5", 5) == (report["loop"], server.most_in_flight)
    assert {("/v1/generations", "image/png")} == {call[:2] for call in server.bodies}
    assert {0, 1, 2} == {body["class_id"] for _, _, body in server.bodies}
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"]
    assert 0.75 == report["batch_fill"]


def test_one_client_waits_for_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """With a concurrency of one, requests never overlap."""
    with service() as server:
        measure(server, capsys, "--requests", "5", "--concurrency", "1")
    assert (5, 1) == (len(server.bodies), server.most_in_flight)


def test_an_open_loop_waits_for_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """All requests arrive although none is answered before the last has come."""
    with service() as server:
        server.together = threading.Barrier(6)
        status, report = measure(server, capsys, "--requests", "6", "--rate", "500")
    assert (0, 6, 6) == (status, report["succeeded"], server.most_in_flight)
    assert "open, 500/s" == report["loop"]


@pytest.mark.parametrize(
    "loop", [["--concurrency", "1"], ["--rate", "1000"]], ids=["closed", "open"]
)
def test_failures_are_counted_by_status(
    loop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Refusals by their status, a connection that breaks by its error; the rest are images."""
    statuses = [200, 429, 503, 429, 0, 200]
    with service(statuses.__getitem__) as server:
        status, report = measure(server, capsys, "--requests", "6", *loop)
    assert (0, 2, 4) == (status, report["succeeded"], report["failed"])
    assert {"429": 2, "503": 1, "RemoteProtocolError": 1} == report["failures"]


def test_nothing_but_failures_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """A report is printed all the same, without latencies, as there are none."""
    with service(lambda number: 500) as server:
        status, report = measure(server, capsys, "--requests", "3")
    assert (1, 0, {"500": 3}) == (status, report["succeeded"], report["failures"])
    assert "p50_ms" not in report


def test_goodput_counts_what_was_quick_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """No answer comes within a millionth of a second, all within a minute."""
    with service() as server:
        for goal_ms, share in (("0.001", 0), ("60000", 1)):
            _, report = measure(server, capsys, "--requests", "4", "--goal-ms", goal_ms)
            assert share * report["images_per_s"] == report["goodput_per_s"]


def test_a_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, a name and a value stand on each line."""
    with service() as server:
        assert 0 == main(["--url", server.url, "--requests", "2"])
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert ("2", "0") == (table["succeeded"], table["failed"])


def test_nobody_at_the_address_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the address at which nobody answers."""
    with service() as server:
        url = server.url
    assert 1 == bar(["bench", "http", "--url", url])
    shown = capsys.readouterr()
    assert "" == shown.out
    assert 1 == shown.err.count("\n")
    assert f"bar bench: no service answers at {url}" in shown.err


def test_another_service_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Something that answers, but not as bar-serve does, is an error of one line."""
    with service() as server:
        server.RequestHandlerClass = OtherService
        assert 1 == bar(["bench", "http", "--url", server.url])
        assert f"what answers at {server.url} is not bar-serve" in capsys.readouterr().err


def test_a_service_with_keys_is_shown_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is read from a file; without it, or with a file that holds none, one line says so."""
    file, broken = tmp_path / "key", tmp_path / "broken"
    file.write_text("bar_secret\n")
    broken.write_bytes(b"\xff")
    with service() as server:
        server.RequestHandlerClass = KeyedService
        arguments = ["bench", "http", "--url", server.url, "--requests", "2"]
        assert 0 == bar([*arguments, "--api-key-file", str(file)])
        assert "bar_secret" not in "".join(capsys.readouterr())
        for flags, message in (
            ([], "wants an API key: give --api-key-file"),
            (["--api-key-file", str(broken)], "broken: it holds no key"),
            (["--api-key-file", str(tmp_path / "none")], "none: No such file"),
        ):
            assert 1 == bar([*arguments, *flags])
            error = capsys.readouterr().err
            assert message in error
            assert 1 == error.count("\n")


class KeyedService(FakeHandler):
    def do_GET(self) -> None:
        if self.headers["authorization"] == "Bearer bar_secret":
            super().do_GET()
        else:
            self.answer(401, "")

    def do_POST(self) -> None:
        assert "Bearer bar_secret" == self.headers["authorization"]
        super().do_POST()


class OtherService(FakeHandler):
    def do_GET(self) -> None:
        self.answer(200, "<html>hello</html>")


def test_a_service_without_metrics_is_measured_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the batch fill is missing from the report."""
    with service() as server:
        server.RequestHandlerClass = WithoutMetrics
        status, report = measure(server, capsys, "--requests", "2")
    assert (0, 2) == (status, report["succeeded"])
    assert "batch_fill" not in report


class WithoutMetrics(FakeHandler):
    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer(404, "no such page")
        else:
            super().do_GET()
