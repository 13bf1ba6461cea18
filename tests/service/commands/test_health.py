"""Facts of `bar health`: what a container's health check is told, and its exit status."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from service.cli import main as bar
from service.commands.health import main


class WorkerStandIn(BaseHTTPRequestHandler):
    """Alive, and not ready."""

    def do_GET(self) -> None:
        is_live = self.path == "/livez"
        self.send_response(200 if is_live else 503)
        self.end_headers()
        self.wfile.write(b"live" if is_live else b"the worker is loading\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent."""


@pytest.fixture
def port() -> Iterator[str]:
    """Serve the stand-in; give its port."""
    server = HTTPServer(("127.0.0.1", 0), WorkerStandIn)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("process", "flag"), [("serve", "--port"), ("worker", "--worker-port")])
def test_who_is_alive_is_well(
    process: str, flag: str, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 0, and the answer is printed."""
    assert 0 == main([process, flag, port])
    assert "live\n" == capsys.readouterr().out


def test_who_is_not_ready_says_why(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked whether it is ready, it is unwell: status 1, and what it waits for."""
    assert 1 == bar(["health", "worker", "--ready", "--worker-port", port])
    assert "bar health: /readyz answers 503: the worker is loading\n" == capsys.readouterr().err


def test_one_that_listens_everywhere_is_asked_on_loopback(port: str) -> None:
    """0.0.0.0, which containers listen on, is no address to connect to."""
    assert 0 == main(["serve", "--host", "0.0.0.0", "--port", port])


def test_no_proxy_stands_between(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that send a container's requests through a proxy do not concern it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert 0 == main(["serve", "--port", port])


def test_nobody_there_is_unwell(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the address that was asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        assert 1 == bar(["health", "serve", "--port", str(number)])
    assert f"nobody answers at 127.0.0.1 port {number}: " in capsys.readouterr().err


def test_a_worker_without_a_port_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """It says which flag or variable would open one."""
    assert 1 == bar(["health", "worker"])
    assert "--worker-port or BAR_WORKER_PORT" in capsys.readouterr().err
