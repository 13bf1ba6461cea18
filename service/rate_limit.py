"""How many requests for images a key may make in a minute.

A bucket of one minute's requests that leaks evenly (GCRA): all of them may come at once, and then
one each time that one has leaked, so that the time of the next is known exactly. The bucket belongs
to the key's name. With a queue on a Redis server it lies there, for all APIs together. While that
server is away each API counts for itself: the queue, which is away too, admits nothing anyway.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import QueueUnavailable, RateLimited
from service.metrics import Metrics
from service.middleware import error_response
from service.redis_client import SCRIPTS, Script, connect, persist
from service.settings import Settings

logger = logging.getLogger("bar.auth")

MINUTE_US = 60_000_000
NO_MODEL = ""  # the body, which names one, is not read
AWAY_S = 2.0  # for so long a server that did not answer is not asked
FOR_IMAGES = frozenset({"/v1/generations", "/v1/images/generations", "/v1/reproduce"})


def is_for_images(scope: Scope) -> bool:
    """Say whether a request is for images: those are limited, looking is not."""
    method, path = scope["method"], scope["path"]
    return (method == "POST" and path in FOR_IMAGES) or (
        method == "PUT" and path.startswith("/v1/generations/")
    )


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What is left of a limit; exact to the microsecond."""

    limit: int
    remaining: int
    reset_s: float  # until all of it is there again
    retry_after_s: float | None  # until the next request passes; None if this one may

    @classmethod
    def of(cls, limit: int, held_us: int, *, passes: bool) -> "Allowance":
        """Read a bucket that holds `held_us`, of which each request is 1/limit of a minute."""
        cost_us = MINUTE_US // limit
        left_us = limit * cost_us - held_us
        return cls(
            limit=limit,
            remaining=left_us // cost_us,
            reset_s=held_us / 1e6,
            retry_after_s=None if passes else (cost_us - left_us) / 1e6,
        )

    def headers(self) -> dict[str, str]:
        """Return the headers that OpenAI's clients know."""
        return {
            "X-RateLimit-Limit-Requests": str(self.limit),
            "X-RateLimit-Remaining-Requests": str(self.remaining),
            "X-RateLimit-Reset-Requests": f"{self.reset_s:.3f}s",
        }


class Limiter(Protocol):
    """Counts requests."""

    async def take(self, owner: str, limit: int) -> Allowance:
        """Count a request of `owner`, who has `limit` a minute, unless that is too many."""

    async def close(self) -> None:
        """Let go of connections."""


class MemoryLimiter:
    """Counts the requests of one process; `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._empty_at_us: dict[str, int] = {}  # by owner: there are as many as names of keys

    async def take(self, owner: str, limit: int) -> Allowance:
        cost = MINUTE_US // limit
        capacity, now = limit * cost, round(self._clock() * 1e6)
        held = min(max(self._empty_at_us.get(owner, 0) - now, 0), capacity)
        if passes := held + cost <= capacity:
            held += cost
        self._empty_at_us[owner] = now + held
        return Allowance.of(limit, held, passes=passes)

    async def close(self) -> None:
        pass


class RedisLimiter:
    """Counts the requests of all processes that use the server at `url`; `clock` is for tests."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self._client, self._clock = connect(url), clock
        self._script = Script((SCRIPTS / "rate_limit.lua").read_text("utf-8"))
        self._alone = MemoryLimiter()
        self._ask_from = 0.0

    async def take(self, owner: str, limit: int) -> Allowance:
        if time.monotonic() >= self._ask_from:
            try:
                return await self._ask(owner, limit)
            except (QueueUnavailable, RedisError) as error:
                self._ask_from = time.monotonic() + AWAY_S
                logger.warning("requests are counted by this process alone: %s", error)
        return await self._alone.take(owner, limit)

    async def _ask(self, owner: str, limit: int) -> Allowance:
        key, cost = f"{{bar:rate:{owner}}}", MINUTE_US // limit
        now = "" if self._clock is None else round(self._clock() * 1e6)
        args = (cost, limit * cost, now)
        # In one attempt: a request whose reply was lost would be counted twice.
        passes, held = await persist(lambda: self._script.call(self._client, key, args), 0.0)
        return Allowance.of(limit, held, passes=bool(passes))

    async def close(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


def make_limiter(settings: Settings) -> Limiter:
    """Return what counts requests where the queue of `settings` is."""
    return MemoryLimiter() if settings.redis_url is None else RedisLimiter(settings.redis_url)


class RateLimit:
    """Answers 429 to a key's requests for images beyond its limit. Stands inside Authentication.

    A key has its own limit, or `requests_per_minute`; 0 is none. Those without a key share one.
    """

    def __init__(
        self, app: ASGIApp, limiter: Limiter, requests_per_minute: int, metrics: Metrics
    ) -> None:
        self._app, self._limiter, self._metrics = app, limiter, metrics
        self._default = requests_per_minute

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and say in its answer what is left; or refuse it, body unread."""
        limit = self._limit(scope) if scope["type"] == "http" and is_for_images(scope) else 0
        if not limit:
            await self._app(scope, receive, send)
            return
        allowance = await self._limiter.take(scope["state"]["owner"], limit)
        headers = allowance.headers()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        if allowance.retry_after_s is None:
            await self._app(scope, receive, send_marked)
        else:
            await self._refuse(allowance.retry_after_s, limit, scope, receive, send_marked)

    def _limit(self, scope: Scope) -> int:
        key = scope["state"]["api_key"]
        own: int | None = key and key.requests_per_minute
        return self._default if own is None else own

    async def _refuse(
        self, after_s: float, limit: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        error = RateLimited(
            f"{limit} requests a minute are allowed; the next one in {after_s:.3f} s",
            retry_after_s=after_s,
        )
        self._metrics.count_rejection(NO_MODEL, error.code)
        response = error_response(error)
        response.headers["Retry-After-Ms"] = str(math.ceil(after_s * 1000))
        await response(scope, receive, send)
