"""Facts of the rate limit: exact, the same in memory and on a server, told in headers."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import rate_limit
from service.rate_limit import MINUTE_US, Allowance, Limiter, MemoryLimiter, RedisLimiter
from service.redis_queue import RedisJobQueue
from service.server import bootstrap_api
from service.settings import Settings
from tests.service.fakes import FakeClock, FakeEngine, fake_info
from tests.service.harness import URL, Harness, error_of, running
from tests.service.key_files import bearer, entry, one_key, write_keys
from tests.service.log_lines import said
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

Open = Callable[[], AbstractAsyncContextManager[Limiter]]
MICROSECOND = 1e-6


@pytest.fixture
def clock() -> FakeClock:
    """The time of all limiters of a test."""
    return FakeClock()


@pytest.fixture(params=["memory", "redis"])
def limiters(request: pytest.FixtureRequest, clock: FakeClock) -> Open:
    """Open limiters that count together: one in memory, or ends of one server."""
    shared = MemoryLimiter(clock)

    @asynccontextmanager
    async def in_memory() -> AsyncIterator[Limiter]:
        yield shared

    if request.param == "memory":
        return in_memory
    server: RedisServer = request.getfixturevalue("redis_server")
    server.flush()

    @asynccontextmanager
    async def on_server() -> AsyncIterator[Limiter]:
        limiter = RedisLimiter(server.url, clock)
        yield limiter
        await limiter.close()

    return on_server


async def take(limiter: Limiter, times: int, limit: int, owner: str = "alice") -> list[bool]:
    """Ask so often; return what passed."""
    return [(await limiter.take(owner, limit)).retry_after_s is None for _ in range(times)]


async def test_a_minutes_requests_may_come_at_once(limiters: Open) -> None:
    """Exactly so many pass, and each says how many are left."""
    async with limiters() as limiter:
        allowances = [await limiter.take("alice", 5) for _ in range(7)]
    assert [4, 3, 2, 1, 0, 0, 0] == [a.remaining for a in allowances]
    assert [True] * 5 + [False] * 2 == [a.retry_after_s is None for a in allowances]
    assert {5} == {a.limit for a in allowances}


async def test_the_next_passes_exactly_when_it_was_said(limiters: Open, clock: FakeClock) -> None:
    """Not a microsecond earlier; and then one, not two."""
    for limit in (1, 3, 5, 7):
        async with limiters() as limiter:
            owner = f"owner{limit}"
            assert [True] * limit == await take(limiter, limit, limit, owner)
            clock.now += 1.25
            wait_s = (await limiter.take(owner, limit)).retry_after_s
            assert wait_s
            clock.now += wait_s - MICROSECOND
            assert [False] == await take(limiter, 1, limit, owner)
            clock.now += MICROSECOND
            assert [True, False] == await take(limiter, 2, limit, owner)


async def test_refused_requests_count_for_nothing(limiters: Open, clock: FakeClock) -> None:
    """Who asks on and on does not wait longer for it."""
    async with limiters() as limiter:
        await take(limiter, 2, 2)
        first = await limiter.take("alice", 2)
        await take(limiter, 50, 2)
        assert first == await limiter.take("alice", 2)
        clock.now += 30
        assert [True, False] == await take(limiter, 2, 2)


async def test_all_is_there_again_when_it_was_said(limiters: Open, clock: FakeClock) -> None:
    """`reset_s` later the bucket is empty."""
    async with limiters() as limiter:
        await take(limiter, 3, 4)
        clock.now += (await limiter.take("alice", 4)).reset_s
        assert 3 == (await limiter.take("alice", 4)).remaining
        assert 15.0 == (await limiter.take("bob", 4)).reset_s


async def test_in_the_long_run_the_limit_is_the_limit(limiters: Open, clock: FakeClock) -> None:
    """After a bucket that is full once comes an even rate, however often one asks."""
    async with limiters() as limiter:
        passed = 0
        for _ in range(120):
            passed += sum(await take(limiter, 2, 4))
            clock.now += 1
    assert 4 + 7 == passed, "and one each 15 s after the first four"


async def test_owners_do_not_share(limiters: Open) -> None:
    """One's requests are not another's."""
    async with limiters() as limiter:
        await take(limiter, 3, 1, "alice")
        assert [True] == await take(limiter, 1, 1, "bob")


async def test_a_lower_limit_is_in_force_at_once(limiters: Open, clock: FakeClock) -> None:
    """What was used under the old one is never more than all of the new one."""
    async with limiters() as limiter:
        await take(limiter, 10, 10)
        lower = await limiter.take("alice", 2)
        assert (0, 30.0) == (lower.remaining, lower.retry_after_s)
        clock.now += 30
        assert [True] == await take(limiter, 1, 2)


async def test_a_clock_that_steps_back_locks_nobody_out(limiters: Open, clock: FakeClock) -> None:
    """The wait is never longer than for a full bucket."""
    async with limiters() as limiter:
        await take(limiter, 2, 2)
        clock.now -= 50
        back = await limiter.take("alice", 2)
        assert (30.0, 60.0) == (back.retry_after_s, back.reset_s)
        clock.now += 30
        assert [True] == await take(limiter, 1, 2)


async def test_memory_and_server_agree(redis_server: RedisServer, clock: FakeClock) -> None:
    """Two hundred random steps: every answer is the same, to the microsecond."""
    redis_server.flush()
    rng, memory = random.Random(5), MemoryLimiter(clock)
    server = RedisLimiter(redis_server.url, clock)
    for _ in range(200):
        clock.now += rng.choice([0, 0, 0.5, 7.3, rng.uniform(0, 40)])
        owner, limit = rng.choice("ab"), rng.choice([1, 2, 3, 7])
        assert await memory.take(owner, limit) == await server.take(owner, limit)
    await server.close()


async def test_the_limit_holds_over_all_apis(redis_server: RedisServer) -> None:
    """Fifty requests at two APIs at once: as many pass as at one."""
    redis_server.flush()
    ends = [RedisLimiter(redis_server.url) for _ in range(2)]
    answers = await asyncio.gather(*(ends[n % 2].take("alice", 20) for n in range(50)))
    assert 20 == sum(answer.retry_after_s is None for answer in answers)
    for end in ends:
        await end.close()


async def test_a_bucket_lives_as_long_as_it_holds_something(redis_server: RedisServer) -> None:
    """Each owner has one key, in a slot of its own of a cluster, and it expires."""
    redis_server.flush()
    limiter = RedisLimiter(redis_server.url)
    for owner in ("alice", "bob"):
        await take(limiter, 3, 6, owner)
    assert {b"{bar:rate:alice}", b"{bar:rate:bob}"} == set(redis_server.client.keys())
    assert 29_000 < int(redis_server.client.pttl("{bar:rate:bob}")) <= 30_000
    await limiter.close()


async def test_while_the_server_is_away_each_api_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are neither all refused nor unlimited; one line says so, until it is back."""
    with RedisServer(tmp_path) as server:
        limiter = RedisLimiter(server.url, FakeClock())
        limiter._alone = MemoryLimiter(FakeClock())
        assert [True, True] == await take(limiter, 2, 3)
        server.kill()
        monkeypatch.setattr(rate_limit, "AWAY_S", 3600.0)
        assert [True, True, True, False, False] == await take(limiter, 5, 3)
        (line,) = said(caplog, "bar.auth")
        assert "alone" in line.getMessage()
        server.start()
        monkeypatch.setattr(limiter, "_ask_from", 0.0)
        assert [False] == await take(limiter, 1, 2), "the server remembers two"
        await limiter.close()


async def test_a_server_that_forbids_it_is_like_one_that_is_away(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A user who may only use the queue's keys does not make every request fail."""
    redis_server.flush()
    redis_server.command("ACL", "SETUSER", "queue", "on", ">pw", "~{bar:digits}:*", "+@all")
    limiter = RedisLimiter(redis_server.url.replace("redis://", "redis://queue:pw@"))
    assert [True, False] == await take(limiter, 2, 1)
    assert "pw" not in caplog.text
    await limiter.close()
    redis_server.command("ACL", "DELUSER", "queue")


def test_an_allowance_never_promises_what_is_not_there() -> None:
    """For every limit a full bucket has none left, and an empty one all of it."""
    for limit in [*range(1, 500), 60_000, 999_999, 1_000_000]:
        cost = MINUTE_US // limit
        assert limit == Allowance.of(limit, 0, passes=True).remaining
        full = Allowance.of(limit, limit * cost, passes=False)
        assert (0, cost / 1e6) == (full.remaining, full.retry_after_s)
        assert 0 == Allowance.of(limit, limit * cost - cost + 1, passes=False).remaining


# ------------------------------------------------------------------------------- through the API


def limits_of(headers: object) -> list[str]:
    """Return the three headers about limits."""
    assert hasattr(headers, "get")
    names = ("limit", "remaining", "reset")
    return [headers.get(f"x-ratelimit-{name}-requests") for name in names]


@asynccontextmanager
async def limited(path: Path, **settings: Any) -> AsyncIterator[Harness]:
    """Run a service with a limit, whose limiter's clock stands still."""
    async with running(FakeEngine(), api_keys_file=path, **settings) as h:
        h.service.api._limiter._clock = FakeClock()  # type: ignore[attr-defined]
        yield h


async def test_beyond_the_limit_the_answer_is_429(tmp_path: Path) -> None:
    """With the time to wait, in whole seconds and in milliseconds; and no job is made."""
    headers = bearer(one_key(tmp_path / "keys.json"))
    async with limited(tmp_path / "keys.json", requests_per_minute=7) as h:
        replies = [await h.generate(headers, class_id=1) for _ in range(8)]
        accepted = (await h.queue.stats()).num_accepted
        metrics = (await h.client.get("/metrics", headers=headers)).text
    assert [200] * 7 + [429] == [reply.status_code for reply in replies]
    assert 7 == accepted
    error, refused = error_of(replies[-1]), replies[-1].headers
    assert ("rate_limit_error", "rate_limit_exceeded") == (error["type"], error["code"])
    assert ("9", "8572") == (refused["retry-after"], refused["retry-after-ms"])
    assert ["7", "6", "8.571s"] == limits_of(replies[0].headers)
    assert ["7", "0", "60.000s"] == limits_of(refused)
    assert refused["x-request-id"].startswith("req_")
    pattern = r'^bar_rejections_total\{.*reason="rate_limit_exceeded"\} (\S+)$'
    counted = re.findall(pattern, metrics, re.MULTILINE)
    assert 1.0 == sum(map(float, counted))


async def test_each_key_has_its_own_limit(tmp_path: Path) -> None:
    """Its own before the server's; 0 is none; without either there is none."""
    path = write_keys(
        tmp_path / "keys.json",
        entry("one", "bar_" + "1" * 43, requests_per_minute=1),
        entry("any", "bar_" + "2" * 43, requests_per_minute=0),
        entry("two", "bar_" + "3" * 43),
    )

    async def statuses(h: Harness, digit: str) -> list[int]:
        headers = bearer("bar_" + digit * 43)
        return [(await h.generate(headers, class_id=1)).status_code for _ in range(4)]

    async with limited(path, requests_per_minute=2) as h:
        assert [200, 429, 429, 429] == await statuses(h, "1")
        assert [200] * 4 == await statuses(h, "2")
        assert [200, 200, 429, 429] == await statuses(h, "3")
    async with limited(path) as h:
        assert [200, 429, 429, 429] == await statuses(h, "1")
        assert [200] * 4 == await statuses(h, "3")


async def test_keys_of_one_name_share_its_bucket(tmp_path: Path) -> None:
    """A second key of the same owner does not double the limit."""
    keys = ["bar_" + digit * 43 for digit in "12"]
    path = write_keys(tmp_path / "keys.json", *(entry("alice", key) for key in keys))
    async with limited(path, requests_per_minute=1) as h:
        replies = [await h.generate(bearer(key), class_id=1) for key in keys]
    assert [200, 429] == [reply.status_code for reply in replies]


async def test_looking_is_not_limited(tmp_path: Path) -> None:
    """Only requests for images count; a bad one among them does too."""
    headers = bearer(one_key(tmp_path / "keys.json"))
    async with limited(tmp_path / "keys.json", requests_per_minute=1) as h:
        for path in ("/v1/models", "/v1/classes", "/metrics", "/livez", URL):
            reply = await h.client.get(path, headers=headers)
            assert reply.status_code != 429
            assert [None, None, None] == limits_of(reply.headers)
        bad = await h.generate(headers, class_id=-1)
        assert (400, ["1", "0", "60.000s"]) == (bad.status_code, limits_of(bad.headers))
        assert 429 == (await h.generate(headers, class_id=1)).status_code


@pytest.mark.parametrize(("method", "path"), [
    ("POST", URL), ("POST", "/v1/images/generations"), ("POST", "/v1/reproduce"),
    ("PUT", f"{URL}/gen_1"),
])  # fmt: skip
async def test_every_way_to_ask_for_images_counts(tmp_path: Path, method: str, path: str) -> None:
    """No other route is a way around."""
    headers = bearer(one_key(tmp_path / "keys.json"))
    async with limited(tmp_path / "keys.json", requests_per_minute=1) as h:
        first = await h.client.request(method, path, headers=headers)
        assert ["1", "0", "60.000s"] == limits_of(first.headers)
        assert 429 == (await h.client.request(method, path, headers=headers)).status_code


async def test_without_keys_all_share_one_limit() -> None:
    """Who cannot be told apart is counted together."""
    async with running(requests_per_minute=2) as h:
        replies = [await h.generate(class_id=1) for _ in range(3)]
    assert [200, 200, 429] == [reply.status_code for reply in replies]


async def test_strangers_use_up_nobodys_limit(tmp_path: Path) -> None:
    """A refused key is refused before anything is counted."""
    headers = bearer(one_key(tmp_path / "keys.json"))
    async with limited(tmp_path / "keys.json", requests_per_minute=1) as h:
        for _ in range(3):
            assert 401 == (await h.generate(class_id=1)).status_code
        assert 200 == (await h.generate(headers, class_id=1)).status_code


async def test_apis_of_one_queue_count_together(redis_server: RedisServer) -> None:
    """Through one a minute's only request is made, and the other refuses the next."""
    redis_server.flush()
    settings = Settings.load({"redis_url": redis_server.url, "requests_per_minute": 1}, {})
    statuses = []
    for _ in range(2):
        service = bootstrap_api(settings, [fake_info()])
        transport = httpx.ASGITransport(service.api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bar") as client:
            statuses.append((await client.post(URL, json={"class_id": 1})).status_code)
        await service.api.close()
        for served in service.models:
            assert isinstance(served.queue, RedisJobQueue)
            await served.queue.disconnect()
    assert [503, 429] == statuses, "no worker is there for the first"


async def test_events_pass_through(tmp_path: Path) -> None:
    """An answer in many parts gets its headers once."""
    headers = bearer(one_key(tmp_path / "keys.json"))
    async with limited(tmp_path / "keys.json", requests_per_minute=2) as h:
        reply = await h.generate({**headers, "accept": "text/event-stream"}, class_id=1)
    assert "event: completed" in reply.text
    assert ["2", "1", "30.000s"] == limits_of(reply.headers)
