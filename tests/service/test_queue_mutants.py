"""The tests of the queue can fail: each of these seeded mistakes is caught by a named one.

A random soak of killed workers does not notice that fencing is gone; so each promise of the
protocol is broken here on purpose, and the test that stands for it must say so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from service.errors import ServiceError
from service.redis_client import Script
from service.redis_queue import RedisJobQueue
from service.redis_scripts import NAMES
from service.redis_work import RedisWorkQueue
from tests.service import test_job_queue as conformance
from tests.service import test_known_jobs as known
from tests.service import test_redis_queue as on_a_server
from tests.service.queue_ends import Ends, close, redis_ends
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

Catcher = Callable[[Ends, RedisServer], Awaitable[None]]


@dataclass(frozen=True)
class Mutant:
    """One mistake: `old` is `new` in every script that has it."""

    name: str
    changes: dict[str, str]  # in every script that has the line
    caught_by: Catcher

    def scripts(self) -> dict[str, Script]:
        """Load the scripts, and change them."""
        texts = {name: Script.load(name).text for name in NAMES}
        for old, new in self.changes.items():
            assert any(old in text for text in texts.values()), f"no script has {old!r} any more"
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        return {name: Script(text) for name, text in texts.items()}


def fact(test: Callable[[Ends], Awaitable[None]]) -> Catcher:
    """Let a test of every queue catch a mutant."""

    async def run(ends: Ends, _server: RedisServer) -> None:
        await test(ends)

    return run


MUTANTS = [
    Mutant(
        "no fencing",
        {
            "if job[2] ~= token or token == '' then": "if false then",
            " or job[2] ~= token then return false end": " then return false end",
        },
        on_a_server.paused_worker_finishes_late,
    ),
    Mutant(
        "result before token check",
        {
            "if job[1] ~= 'running' or job[2] ~= token then return false end": (
                "redis.call('SET', result_key(id), ARGV[6])"
            )
        },
        on_a_server.paused_worker_finishes_late,
    ),
    Mutant(
        "no reaping",
        {"for _, id in ipairs(due(LEASE)) do lose(id) end": ""},
        fact(conformance.test_a_lost_workers_job_runs_again),
    ),
    Mutant(
        "no nonce",
        {"if known[1] == nonce then": "if false then"},
        on_a_server.claim_reply_gets_lost,
    ),
    Mutant(
        "no grace after an outage",
        {"if now < (tonumber(redis.call('HGET', META, 'grace_until')) or 0) then return end": ""},
        fact(conformance.test_after_an_outage_leases_are_given_time),
    ),
    Mutant(
        "blame the batch: no solo lane",
        {"if crashes < policy.solo_from then": "if true then"},
        fact(conformance.test_a_suspect_runs_alone),
    ),
    Mutant(
        "a suspect in company",
        {"  while is_idle and redis.call": "  while redis.call"},
        fact(conformance.test_a_suspect_waits_until_the_others_are_done),
    ),
    Mutant(
        "suspects are never given up",
        {"if crashes >= policy.max_crashes then": "if false then"},
        fact(conformance.test_a_job_that_loses_every_worker_is_dead),
    ),
    Mutant(
        "lost bell",
        {"redis.call('LPUSH', BELL, '1')": ""},
        fact(conformance.test_an_idle_worker_wakes_when_a_job_comes),
    ),
    Mutant(
        "double enqueue",
        {"\nif known[1] then\n  local is_same": "\nif false then\n  local is_same"},
        fact(conformance.test_admitting_a_known_job_again_changes_nothing),
    ),
    Mutant(
        "unbounded admission",
        {"if queued + cost > policy.max_queued_cost then": "if false then"},
        fact(conformance.test_the_bound_counts_images_times_steps_exactly),
    ),
    Mutant(
        "the bound is off by one",
        {"queued + cost > policy.max_queued_cost": "queued + cost >= policy.max_queued_cost"},
        fact(conformance.test_the_bound_counts_images_times_steps_exactly),
    ),
    Mutant(
        "no quota",
        {"if unfinished >= tonumber(ARGV[17]) then": "if false then"},
        fact(conformance.test_an_owner_has_so_many_unfinished_jobs),
    ),
    Mutant(
        "a quota that never falls",
        {"redis.call('SREM', owner_key(redis.call('HGET', key, 'owner') or ''), id)": ""},
        fact(conformance.test_an_owner_has_so_many_unfinished_jobs),
    ),
    Mutant(
        "cancel ignored while running",
        {
            "if state == 'queued' or state == 'running' then stop(id, state, target)": (
                "if state == 'queued' then stop(id, state, target)"
            )
        },
        fact(conformance.test_a_cancelled_running_job_is_revoked_and_its_result_refused),
    ),
    Mutant(
        "nothing expires by itself",
        {"for _, id in ipairs(due(DEADLINES)) do expire(id) end": ""},
        fact(conformance.test_a_waiting_job_expires_without_any_worker),
    ),
    Mutant(
        "a lost worker counts as an attempt",
        {"redis.call('HINCRBY', key, 'attempts', -1)": ""},
        fact(conformance.test_a_lost_workers_job_runs_again),
    ),
    Mutant(
        "a release counts as an attempt",
        {"redis.call('HINCRBY', job_key(id), 'attempts', -1)": ""},
        fact(conformance.test_released_jobs_keep_their_place_and_attempts),
    ),
    Mutant(
        "no back-off",
        {"redis.call('ZADD', DELAYED, n(now + wait)": "redis.call('ZADD', READY, n(now - 1e9)"},
        fact(conformance.test_a_retryable_failure_is_tried_again_later),
    ),
    Mutant(
        "priority without ageing",
        {"enter_queue(id, READY, now - lead)": "enter_queue(id, READY, -lead)"},
        fact(conformance.test_priority_is_a_lead_that_age_overcomes),
    ),
    Mutant(
        "the fingerprint is ignored",
        {" and (known[2] or '') == fingerprint": ""},
        fact(known.test_an_id_stands_for_one_request),
    ),
    Mutant(
        "a stranger attaches to a job",
        {"is_keys or known[1] == owner and": "is_keys or"},
        fact(known.test_an_id_stands_for_one_request),
    ),
    Mutant(
        "a key dies with its job's record",
        {"id = meant[1]": "if redis.call('EXISTS', job_key(meant[1])) > 0 then id = meant[1] end"},
        fact(known.test_a_key_outlives_the_record_of_its_job),
    ),
    Mutant(
        "a key's job is made twice",
        {"if known[1] then\n  local is_same": "if known[1] and not is_keys then\n  local is_same"},
        fact(known.test_a_key_outlives_the_record_of_its_job),
    ),
    Mutant(
        "records for ever",
        {"drop_records(1000)": ""},
        fact(known.test_a_record_goes_when_its_time_has_come),
    ),
    Mutant(
        "a dropped record stays listed",
        {"redis.call('ZREM', list_key(redis.call('HGET', job_key(id), 'owner') or ''), id)": ""},
        on_a_server.no_key_is_left,
    ),
    Mutant(
        "an old job's end drops a new one's record",
        {"redis.call('ZREM', KEPT, id)\nlist(": "list("},
        on_a_server.an_id_lives_twice,
    ),
    Mutant(
        "a slow worker loses its turn",
        {"if has_turn and": "if false and"},
        on_a_server.test_a_slow_worker_keeps_its_turn,
    ),
    Mutant(
        "a turn for nobody is kept",
        {"(turn[3] or redis.call('ZCARD', SOLO) > 0) and": ""},
        on_a_server.test_a_turn_for_nobody_is_not_kept,
    ),
    Mutant(
        "to forget again prolongs",
        {"if not kept_until or kept_until > ": "if now + "},
        fact(known.test_an_answered_job_is_known_for_a_minute),
    ),
    Mutant(
        "a page begins with the last one seen",
        {"if is_there then first = first + 1": "if is_there then first = first"},
        fact(known.test_a_list_goes_on_behind_the_last_one_seen),
    ),
]


@pytest.fixture
async def ends(redis_server: RedisServer) -> AsyncIterator[Ends]:
    """Both ends on an empty server."""
    redis_server.flush()
    made = redis_ends(redis_server.url)
    yield made
    redis_server.flush()
    await close(made)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_a_mistake_is_caught(ends: Ends, redis_server: RedisServer, mutant: Mutant) -> None:
    """The named test fails on a protocol with the mistake in it."""
    assert isinstance(ends.api, RedisJobQueue)
    assert isinstance(ends.work, RedisWorkQueue)
    ends.api._scripts._scripts = ends.work._scripts._scripts = mutant.scripts()
    # What a failing test raises; TimeoutError where it waits for what never comes.
    caught = AssertionError, pytest.fail.Exception, ServiceError, ValueError, TimeoutError
    with pytest.raises(caught):
        async with asyncio.timeout(2):
            await mutant.caught_by(ends, redis_server)
