"""Facts of the way to the server: what is tried again, for how long, and what that turns into."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service import redis_client
from service.errors import QueueUnavailable
from service.redis_client import Script, connect, connect_blocking, is_transient, persist
from tests.service.fakes import FakeClock
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

URL = "redis://127.0.0.1:1/0"


class Call:
    """Fails in the given ways, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.num_calls = list(errors), 0

    async def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.mark.parametrize("error", [
    RedisConnectionError("Connection closed by server."),
    RedisTimeoutError("Timeout reading from socket"),
    BusyLoadingError("LOADING Redis is loading the dataset in memory"),
    ReadOnlyError("READONLY You can't write against a read only replica."),
    ResponseError("MASTERDOWN Link with MASTER is down"),
    ResponseError("CLUSTERDOWN The cluster is down"),
    ResponseError("TRYAGAIN Multiple keys request during rehashing of slot"),
    ResponseError("UNBLOCKED force unblock from blocking operation"),
    OSError("reset"),
], ids=str)  # fmt: skip
async def test_what_passes_is_tried_again(error: Exception) -> None:
    """Connections that break and servers that are about to be well cost a moment."""
    call = Call(error, error)
    assert "done" == await persist(call)
    assert 3 == call.num_calls


@pytest.mark.parametrize("error", [
    ResponseError("ERR unknown command"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
], ids=str)  # fmt: skip
async def test_what_does_not_pass_is_raised_at_once(error: RedisError) -> None:
    """A mistake of ours, or of who runs the server, is not hidden behind patience."""
    call = Call(error)
    with pytest.raises(type(error)):
        await persist(call)
    assert 1 == call.num_calls


async def test_a_full_server_is_unavailable_at_once() -> None:
    """Trying again would only add to its load; the client is told when to come again."""
    call = Call(OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'."))
    with pytest.raises(QueueUnavailable, match="full") as refused:
        await persist(call)
    assert (1, True) == (call.num_calls, bool(refused.value.retry_after_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Time that passes while somebody waits, and only then."""
    clock, sleep = FakeClock(), asyncio.sleep

    async def pass_time(seconds: float) -> None:
        clock.now += seconds
        await sleep(0)

    monkeypatch.setattr(redis_client, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(asyncio, "sleep", pass_time)
    return clock


class Absence:
    """A server that is away: what each attempt costs until it fails."""

    def __init__(self, clock: FakeClock, *costs_s: float) -> None:
        self.clock, self.costs_s, self.num_calls = clock, costs_s, 0

    async def __call__(self) -> None:
        self.clock.now += self.costs_s[min(self.num_calls, len(self.costs_s) - 1)]
        self.num_calls += 1
        raise RedisConnectionError("away")


@pytest.mark.parametrize(("attempt_s", "num_calls"), [
    (0.0, 7),  # it refuses connections
    (redis_client.CONNECT_TIMEOUT_S, 2),
    (redis_client.SOCKET_TIMEOUT_S, 2),  # it hangs
    (2 * redis_client.SOCKET_TIMEOUT_S, 1),  # it hangs, and so do all other connections
])  # fmt: skip
async def test_patience_ends(clock: FakeClock, attempt_s: float, num_calls: int) -> None:
    """However an absent server shows its absence: whoever asks knows within two seconds."""
    absence, started = Absence(clock, attempt_s), clock.now
    with pytest.raises(QueueUnavailable, match="does not answer") as refused:
        await persist(absence)
    assert clock.now - started < 2.0
    assert num_calls == absence.num_calls
    assert refused.value.retry_after_s


async def test_a_pause_of_ours_is_not_the_servers(clock: FakeClock) -> None:
    """A process that stood still for longer than its patience asks once more before it says that
    the server is away; one that has no patience asks once."""
    absence = Absence(clock, 5.0, 0.0)
    with pytest.raises(QueueUnavailable):
        await persist(absence)
    assert 2 == absence.num_calls
    with pytest.raises(QueueUnavailable):
        await persist(absence, budget_s=0.0)
    assert 3 == absence.num_calls


async def test_a_call_that_nobody_waits_for_is_left_to_end() -> None:
    """Its reply must not be left on a connection for the next command to read."""
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        began.set()
        await may_end.wait()
        ended.set()
        raise RedisConnectionError("which nobody will see")

    waiting = asyncio.create_task(persist(call))
    await began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    may_end.set()
    await asyncio.wait_for(ended.wait(), 10)


def test_wrong_passwords_are_told_apart_from_absence() -> None:
    """They are retried like a connection that fails, since redis-py makes them one, and the log
    says which."""
    assert is_transient(AuthenticationError("WRONGPASS invalid username-password pair"))
    assert not is_transient(NoScriptError("NOSCRIPT No matching script"))


@pytest.mark.parametrize("make", [connect, connect_blocking])
def test_nothing_is_left_to_the_librarys_defaults(make: Callable[[str], "object"]) -> None:
    """Time limits, protocol and retries differ between its versions; here they do not."""
    options = make(URL).connection_pool.connection_kwargs  # type: ignore[attr-defined]
    assert redis_client.SOCKET_TIMEOUT_S == options["socket_timeout"]
    assert redis_client.CONNECT_TIMEOUT_S == options["socket_connect_timeout"]
    assert (2, False, 0) == (
        options["protocol"], options["retry_on_timeout"], options["health_check_interval"]
    )  # fmt: skip
    assert 0 == options["retry"]._retries
    assert redis_client.BLOCKING_S < redis_client.SOCKET_TIMEOUT_S


async def test_a_scripts_error_is_the_commands_own(redis_server: RedisServer) -> None:
    """What the server wraps when it happens within a script is recognised all the same."""
    redis_server.flush()
    client = connect(redis_server.url)
    writing = Script("redis.call('SET', KEYS[1], 'x')")
    try:
        redis_server.client.config_set("maxmemory", "1")
        with pytest.raises(OutOfMemoryError):
            await writing.call(client, "{bar:digits}:x", [])
        redis_server.client.config_set("maxmemory", "0")
        redis_server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ReadOnlyError):
            await writing.call(client, "{bar:digits}:x", [])
    finally:
        redis_server.command("REPLICAOF", "NO", "ONE")
        redis_server.client.config_set("maxmemory", "0")
        await client.aclose()
