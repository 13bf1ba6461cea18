"""The whole of a queue, read from its inside, for tests that compare it with a plain model."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from service.jobs import JobState
from service.memory_queue import MemoryJobQueue
from service.redis_queue import RedisJobQueue
from tests.service.queue_ends import Ends

ZSETS = ("ready", "solo", "delayed", "lease")
KINDS = {*ZSETS, "j", "t", "o", "r", "s", "w", "bell", "meta", "deadlines", "dead", "kept"}


@dataclass
class Seen:
    """What the queue holds, read from its inside."""

    homes: dict[str, set[str]]
    owned: dict[str, set[str]] | dict[str, int]
    listed: dict[str, set[str]]
    jobs: dict[str, tuple[JobState, int, int]]  # state, attempts, crashes
    results: dict[str, bytes]
    cost: int
    accepted: int
    ended: Counter[JobState] = field(default_factory=Counter)


async def look(ends: Ends, owners: Iterable[str]) -> Seen:
    """Read the whole of a queue."""
    if isinstance(ends.api, MemoryJobQueue):
        return look_at_memory(ends.api, owners)
    assert isinstance(ends.api, RedisJobQueue)
    return await look_at_server(ends.api)


def look_at_memory(queue: MemoryJobQueue, owners: Iterable[str]) -> Seen:
    """Read the book."""
    book = queue._book
    records = {**book.unfinished, **{r.job.id: r for r in queue._archive.records()}}
    orders = {"ready": book.ready, "solo": book.solo, "delayed": book.delayed}
    return Seen(
        homes={
            **{name: {r.job.id for r in order.records()} for name, order in orders.items()},
            "lease": set(book.running),
        },
        owned=dict(book.owned),
        listed={owner: {r.job.id for r in book.jobs_of(owner)} for owner in owners},
        jobs={i: (r.state, r.attempts, r.crashes) for i, r in records.items()},
        results={
            i: r.outcome.result.images[0]
            for i, r in records.items()
            if r.outcome and r.outcome.result
        },
        cost=book.cost_waiting,
        accepted=queue._num_accepted,
        ended=book.num_ended,
    )


async def look_at_server(queue: RedisJobQueue) -> Seen:
    """Read every key, and check that each is known and none stays for ever (I8)."""
    found, homes, meta = await _read_all(queue)
    jobs = {}
    for job_id, (ttl_ms, values) in found["j"].items():
        state, attempts, crashes = (value.decode() for value in values)
        jobs[job_id] = (JobState(state), int(attempts), int(crashes))
        assert (ttl_ms > 0) == JobState(state).is_terminal, f"I8: {job_id} has ttl {ttl_ms}"
    unfinished = {i for i, (state, _, _) in jobs.items() if not state.is_terminal}
    assert unfinished == homes["deadlines"]
    assert jobs.keys() - unfinished == homes["kept"]
    return Seen(
        homes=homes,
        owned={owner: _texts(members) for owner, (_, members) in found["t"].items()},
        listed={owner: _texts(members) for owner, (_, members) in found["o"].items()},
        jobs=jobs,
        results={i: value.partition(b"\n")[2] for i, (_, value) in found["r"].items()},
        cost=meta.get("queued_cost", 0),
        accepted=meta.get("accepted", 0),
        ended=Counter({s: meta.get(f"ended:{s}", 0) for s in JobState if s.is_terminal}),
    )


READS: dict[str, Callable[[Any, str], object]] = {
    "j": lambda pipe, key: pipe.hmget(key, "state", "attempts", "crashes"),
    "t": lambda pipe, key: pipe.smembers(key),
    "o": lambda pipe, key: pipe.zrange(key, 0, -1),
    "r": lambda pipe, key: pipe.get(key),
    "s": lambda pipe, key: pipe.exists(key),  # and whatever else is only there or not
}


async def _read_all(queue: RedisJobQueue) -> tuple[Any, dict[str, set[str]], dict[str, int]]:
    """Return time to live and content of every key by kind and name; the sorted sets; counters."""
    client, prefix = queue._client, queue._keys.prefix
    keys = sorted([key.decode() async for key in client.scan_iter(count=1000)])
    names = (*ZSETS, "deadlines", "kept")
    async with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(prefix + "meta")
        for name in names:
            pipe.zrange(prefix + name, 0, -1)
        for key in keys:
            kind = key.removeprefix(prefix).partition(":")[0]
            assert key.startswith(prefix), f"I8: {key}"
            assert kind in KINDS, f"I8: {key}"
            pipe.pttl(key)
            READS.get(kind, READS["s"])(pipe, key)
        meta, *answers = await pipe.execute()
    found: dict[str, dict[str, tuple[int, Any]]] = {kind: {} for kind in KINDS}
    rows = zip(answers[len(names) :: 2], answers[len(names) + 1 :: 2], strict=True)
    for key, (ttl_ms, value) in zip(keys, rows, strict=True):
        kind, _, rest = key.removeprefix(prefix).partition(":")
        found[kind][rest] = ttl_ms, value
        assert ttl_ms > 0 or kind not in ("r", "s", "w", "o", "bell"), f"I8: {key} stays for ever"
    homes = {name: _texts(ids) for name, ids in zip(names, answers, strict=False)}
    numbers = {k.decode(): v.decode() for k, v in meta.items()}
    return found, homes, {k: int(v) for k, v in numbers.items() if v.isdigit()}


def _texts(values: Iterable[bytes]) -> set[str]:
    return {value.decode() for value in values}
