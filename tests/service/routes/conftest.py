"""What is asked of a service must be answered alike whichever queue is behind it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.service.harness import Harness, listening, running
from tests.service.redis_harness import listening_on, running_on
from tests.service.redis_server import RedisServer

Run = Callable[..., AbstractAsyncContextManager[Harness]]


@dataclass(frozen=True)
class Services:
    """Ways to run a service over one kind of queue."""

    running: Run
    listening: Run


@pytest.fixture(params=["memory", "redis"])
def services(request: pytest.FixtureRequest) -> Services:
    """A service over the queue in memory, and over one on a real server."""
    if request.param == "memory":
        return Services(running, listening)
    server: RedisServer = request.getfixturevalue("redis_server")
    server.flush()
    return Services(partial(running_on, server.url), partial(listening_on, server.url))
