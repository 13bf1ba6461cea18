"""The way to the queue's server: connections, time limits, one bounded loop of retries, scripts.

redis-py's defaults for time-outs, protocol and retries differ between its versions, so all are set
here. Its own retries are off: every command that is sent from here may be sent twice, because the
scripts are idempotent, and one loop that stops in time is easier to reason about than two. A call
that nobody waits for any longer is left to end: cancelling it half way could leave its reply on a
connection that the next command uses.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from service.errors import QueueUnavailable

logger = logging.getLogger("bar.queue")

SCRIPTS = Path(__file__).parent / "lua"
CONNECT_TIMEOUT_S = 0.5
SOCKET_TIMEOUT_S = 0.8
BUDGET_S = 1.0  # after which no further attempt begins: with the last one's, under two seconds
# Waiting for a connection, connecting, asking: an attempt of more was held up by this process.
LONGEST_ATTEMPT_S = CONNECT_TIMEOUT_S + 2 * SOCKET_TIMEOUT_S
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25
BLOCKING_S = 0.5  # less than a socket waits
MAX_CONNECTIONS = 32
RETRY_AFTER_S = 1.0

# Replies of a server that is about to be well, or of a replica that has just been one's master.
TRANSIENT = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED")

T = TypeVar("T")


def _options(url: str) -> dict[str, Any]:
    # Whether a certificate must name the server is another default that differs.
    encryption = {"ssl_check_hostname": True} if url.startswith("rediss:") else {}
    return {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "protocol": 2,
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "decode_responses": False,
        **encryption,
    }


def connect(url: str, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """Return a client of the server at `url`; it connects when it is first used."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        **_options(url),
    )
    return Redis.from_pool(pool)


def connect_blocking(url: str) -> "redis.Redis":
    """Return a client for a thread of its own."""
    retry = redis.retry.Retry(NoBackoff(), 0)
    client: redis.Redis = redis.Redis.from_url(url, retry=retry, **_options(url))
    return client


def is_transient(error: RedisError) -> bool:
    """Say whether another attempt may succeed: the connection broke, or the server is not ready."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | BusyLoadingError):
        return True
    return isinstance(error, ReadOnlyError) or str(error).startswith(TRANSIENT)


async def persist(call: Callable[[], Awaitable[T]], budget_s: float = BUDGET_S) -> T:
    """Return what `call` returns, called again while it fails for a passing reason.

    Raises: QueueUnavailable once `budget_s` is over, or at once if the server is full or does not
    grant the rights that are needed.
    """
    ends_at, pause_s = time.monotonic() + budget_s, FIRST_PAUSE_S
    may_end = not budget_s
    while True:
        began_at = time.monotonic()
        try:
            return await asyncio.shield(_left_to_end(call))
        except OutOfMemoryError:
            raise QueueUnavailable(
                "the queue's server is full; try again later", retry_after_s=RETRY_AFTER_S
            ) from None
        except NoPermissionError as error:
            logger.error("the queue's server does not grant what docs/queue.md asks for: %s", error)  # noqa: TRY400
            raise QueueUnavailable(
                "the queue's server refuses this service; its log says why",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except (RedisError, OSError) as error:
            is_passing = isinstance(error, OSError) or is_transient(error)
            if not is_passing:
                raise
            # The first one that took too long does not count: it was not the server.
            may_end = may_end or time.monotonic() - began_at <= LONGEST_ATTEMPT_S
            if may_end and time.monotonic() + pause_s >= ends_at:
                raise QueueUnavailable(
                    "the queue's server does not answer; try again later",
                    retry_after_s=RETRY_AFTER_S,
                ) from error
        may_end = True
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def command(client: Redis, *args: Any, budget_s: float = BUDGET_S) -> Any:
    """Return the server's answer to one command. Raises: QueueUnavailable."""
    return await persist(lambda: client.execute_command(*args), budget_s)  # type: ignore[no-untyped-call]


async def commands(client: Redis, batch: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the server's answers to several commands, sent at once. Raises: QueueUnavailable."""
    batch = list(batch)

    async def call() -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            for args in batch:
                pipe.execute_command(*args)
            return list(await pipe.execute())

    return await persist(call)


def _left_to_end(call: Callable[[], Awaitable[T]]) -> "asyncio.Future[T]":
    future = asyncio.ensure_future(call())
    # If nobody is left to see how it ends, it has not to be reported as forgotten.
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    return future


class Script:
    """A Lua script: sent by its digest, and whole to a server that has forgotten it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a script, with what all of them begin with."""
        return cls(
            "\n".join((SCRIPTS / f"{part}.lua").read_text("utf-8") for part in ("state", name))
        )

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def call(self, client: Redis, key: str, args: Sequence[Any]) -> Any:
        """Run the script; `key` says which slot of a cluster it belongs to."""
        try:
            try:
                return await client.evalsha(self._digest, 1, key, *args)
            except NoScriptError:
                return await client.eval(self.text, 1, key, *args)
        except ResponseError as error:
            raise _named(error) from None

    def call_blocking(self, client: "redis.Redis", key: str, args: Sequence[Any]) -> Any:
        """Run the script from a thread without an event loop."""
        try:
            return client.evalsha(self._digest, 1, key, *args)
        except NoScriptError:
            return client.eval(self.text, 1, key, *args)


def _named(error: ResponseError) -> RedisError:
    """Return the error that a script's failing command would have raised by itself."""
    text = str(error)
    if "OOM" in text:
        return OutOfMemoryError(text)
    if "READONLY" in text:
        return ReadOnlyError(text)
    if "NOPERM" in text or "no permissions" in text or "can't run this command" in text:
        return NoPermissionError(text)
    return error
