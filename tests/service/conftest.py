"""Fixtures of the service's tests: the event loop, and a tiny real model on disk."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service import redis_client
from tests.service.fleet import Fleet
from tests.service.harness import save_tiny_model
from tests.service.redis_server import RedisServer


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a server of this process's queues is slow, not away."""
    for name in ("CONNECT_TIMEOUT_S", "SOCKET_TIMEOUT_S"):
        monkeypatch.setattr(redis_client, name, 20.0)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights, for what needs the real engine."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(directory)
    return directory


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real server on loopback for tests that leave it as they found it: running."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """No processes yet but a server, which the test may hurt."""
    with RedisServer(tmp_path) as server, ExitStack() as stack:
        yield Fleet(server, stack)
