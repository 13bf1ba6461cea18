"""Facts of every queue, in memory and on a real server: the same tests for both."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from service.errors import IdempotencyMismatch, QueueFull, QuotaExceeded
from service.jobs import (
    IdempotencyKey,
    JobProgress,
    JobState,
    PartialImage,
    WorkerStatus,
)
from tests.service.log_lines import said
from tests.service.queue_ends import POLICY, RESULT, Ends, ends_of, job

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "redis"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """Both ends of a queue that is empty."""
    async with ends_of(request.param, request) as made:
        yield made


async def test_jobs_are_claimed_in_the_order_of_admission(ends: Ends) -> None:
    """The oldest job is claimed first."""
    for name in "abc":
        await ends.api.admit(job(name))
        ends.clock.now += 0.001
    assert ["a", "b", "c"] == await ends.claimed()


async def test_a_claim_stops_at_its_limit_of_images(ends: Ends) -> None:
    """A claim takes jobs until it has as many images as asked; only the last may exceed that."""
    for name in "abc":
        await ends.api.admit(job(name, num_images=2))
        ends.clock.now += 0.001
    assert ["a", "b"] == await ends.claimed(3)
    assert [] == await ends.claimed(0)
    assert ["c"] == await ends.claimed(1)


async def test_priority_is_a_lead_that_age_overcomes(ends: Ends) -> None:
    """High overtakes normal for 15 s, normal low; whoever is older by more is first."""
    await ends.api.admit(job("low", priority="low"))
    ends.clock.now += 10
    await ends.api.admit(job("normal"))
    ends.clock.now += 10
    await ends.api.admit(job("high", priority="high"))
    ends.clock.now += 20
    await ends.api.admit(job("late", priority="high"))
    assert ["high", "normal", "low", "late"] == await ends.claimed()


async def test_the_bound_counts_images_times_steps_exactly(ends: Ends) -> None:
    """Queued cost may reach the bound and not exceed it; claiming makes room."""
    await ends.api.admit(job("a", num_images=99))
    with pytest.raises(QueueFull, match="990 of 1000"):
        await ends.api.admit(job("b", num_images=2))
    await ends.api.admit(job("c", num_images=1))
    await ends.work.claim(1)
    await ends.api.admit(job("b", num_images=2))
    assert 30 == (await ends.api.stats()).cost_waiting


async def test_a_full_queue_says_when_there_should_be_room(ends: Ends) -> None:
    """The time to wait is the queued cost over the measured steps a second, within bounds."""
    await ends.work.report(
        WorkerStatus(name="worker", phase="ready", num_slots=50, free_slots=0, step_s=0.5)
    )
    await ends.api.admit(job("a", num_images=100))
    with pytest.raises(QueueFull) as refused:
        await ends.api.admit(job("b"))
    assert 10.0 == refused.value.retry_after_s


async def test_an_owner_has_so_many_unfinished_jobs(ends: Ends) -> None:
    """The quota counts what has not ended, exactly, and each owner's own."""
    for n in range(99):
        await ends.api.admit(job(str(n), owner="ann", num_images=1))
    await ends.claimed()
    await ends.api.admit(job("last", owner="ann"))
    with pytest.raises(QuotaExceeded):
        await ends.api.admit(job("beyond", owner="ann"))
    await ends.api.admit(job("other", owner="bob"))
    await ends.api.cancel("7")
    await ends.api.admit(job("beyond", owner="ann"))


async def test_an_owner_may_have_a_quota_of_its_own(ends: Ends) -> None:
    """It counts instead of the queue's, for less or for more."""
    await ends.api.admit(job("a", owner="ann", owner_quota=1))
    with pytest.raises(QuotaExceeded, match="1 may be open"):
        await ends.api.admit(job("b", owner="ann", owner_quota=1))
    for n in range(101):
        await ends.api.admit(job(f"bob{n}", owner="bob", owner_quota=101))
        await ends.claimed()
    with pytest.raises(QuotaExceeded):
        await ends.api.admit(job("beyond", owner="bob", owner_quota=101))


async def test_admitting_a_known_job_again_changes_nothing(ends: Ends) -> None:
    """A retried admission is harmless, whatever has become of the job."""
    await ends.api.admit(job("a"))
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(10)
    await ends.api.admit(job("a"))
    await ends.work.complete(claim, RESULT)
    assert "a" == await ends.api.admit(job("a"))
    stats = await ends.api.stats()
    assert (1, 0, 0) == (stats.num_accepted, stats.jobs_waiting, stats.jobs_running)


async def test_an_idempotency_key_stands_for_one_job(ends: Ends) -> None:
    """The same key and body attach to the first job; another body is refused; owners differ."""
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    assert "a" == await ends.api.admit(job("a"), idempotency=key)
    assert "a" == await ends.api.admit(job("b"), idempotency=key)
    assert "c" == await ends.api.admit(job("c", owner="bob"), idempotency=key)
    with pytest.raises(IdempotencyMismatch):
        await ends.api.admit(job("d"), idempotency=replace(key, fingerprint="other"))
    assert 2 == (await ends.api.stats()).num_accepted


async def test_a_key_whose_job_failed_retryably_stands_for_the_next(ends: Ends) -> None:
    """A client that was told to try again does, under its key; the failed job stays as it ended."""
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    await ends.api.admit(job("a"), idempotency=key)
    for _ in range(POLICY.max_attempts):
        (claim,) = await ends.work.claim(1)
        await ends.work.fail(claim, "cold", is_retryable=True)
        ends.clock.now += POLICY.max_backoff_s
    assert JobState.FAILED is await ends.api.state("a")
    assert "b" == await ends.api.admit(job("b"), idempotency=key)
    assert "b" == await ends.api.admit(job("c"), idempotency=key)
    assert JobState.FAILED is await ends.api.state("a")
    (claim,) = await ends.work.claim(1)
    await ends.work.fail(claim, "its own fault")
    assert "b" == await ends.api.admit(job("d"), idempotency=key)


async def test_a_completed_job_reaches_its_waiter(ends: Ends) -> None:
    """`wait` gives the result, byte for byte, to whoever waits before and after the end."""
    await ends.api.admit(job("a"))
    waiter = asyncio.create_task(ends.api.wait("a"))
    (claim,) = await ends.work.claim(1)
    assert JobState.RUNNING is await ends.api.state("a")
    assert await ends.work.complete(claim, RESULT)
    outcome = await ends.api.wait("a")
    assert (JobState.SUCCEEDED, RESULT) == (outcome.state, outcome.result)
    waiter.cancel()


async def test_a_job_arrives_as_it_was_sent(ends: Ends) -> None:
    """Seeds, settings, formats and owners are the same at the other end."""
    sent = job("a", num_images=3, priority="high", partial_images=2, owner="ann")
    await ends.api.admit(sent)
    (claim,) = await ends.work.claim(1)
    assert sent == claim.job


async def test_an_unknown_job_is_a_key_error(ends: Ends) -> None:
    """Nobody waits for a job that is not there."""
    with pytest.raises(KeyError):
        await ends.api.wait("a")
    with pytest.raises(KeyError):
        await ends.api.follow("a", -1, 0.0)
    assert None is await ends.api.state("a")
    assert None is await ends.api.cancel("a")


async def test_a_cancelled_waiting_job_is_never_claimed(ends: Ends) -> None:
    """Cancelling takes a waiting job out of the queue and gives its cost back."""
    await ends.api.admit(job("a"))
    await ends.api.admit(job("b"))
    assert JobState.QUEUED is await ends.api.cancel("a")
    assert 10 == (await ends.api.stats()).cost_waiting
    assert ["b"] == await ends.claimed()


async def test_a_cancelled_running_job_is_revoked_and_its_result_refused(ends: Ends) -> None:
    """The worker learns of the cancellation, and a late completion or failure is void."""
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(1)
    assert [] == await ends.renew("a")
    assert JobState.RUNNING is await ends.api.cancel("a")
    assert ["a"] == await ends.renew("a")
    assert not await ends.work.complete(claim, RESULT)
    assert not await ends.work.fail(claim, "late")
    assert 1 == (await ends.api.stats()).num_ended[JobState.CANCELLED]
    assert None is (await ends.api.wait("a")).result


async def test_a_terminal_state_is_entered_once(ends: Ends) -> None:
    """What happens to a job after its end changes neither its state nor any count."""
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(1)
    assert await ends.work.complete(claim, RESULT)
    assert not await ends.work.fail(claim, "late")
    assert None is await ends.api.expire("a")
    assert None is await ends.api.cancel("a")
    assert JobState.SUCCEEDED is await ends.api.state("a")
    ended = (await ends.api.stats()).num_ended
    assert {JobState.SUCCEEDED: 1} == {state: n for state, n in ended.items() if n}


async def test_a_late_job_expires_instead_of_being_claimed(ends: Ends) -> None:
    """A job whose time passed in the queue takes no slot."""
    await ends.api.admit(job("late", timeout_s=5))
    await ends.api.admit(job("a", timeout_s=60))
    ends.clock.now += 5
    assert ["a"] == await ends.claimed()
    assert JobState.EXPIRED is (await ends.api.wait("late")).state


async def test_a_waiting_job_expires_without_any_worker(ends: Ends) -> None:
    """Time alone ends what nobody claims."""
    await ends.api.admit(job("late", timeout_s=5))
    await ends.advance(5)
    assert JobState.EXPIRED is await ends.api.state("late")


async def test_a_running_job_expires_when_its_time_is_up(ends: Ends) -> None:
    """A worker that asks is told to drop a job that is late."""
    await ends.api.admit(job("a", timeout_s=5))
    await ends.work.claim(1)
    ends.clock.now += 4.9
    assert [] == await ends.renew("a")
    ends.clock.now += 0.2
    assert ["a"] == await ends.renew("a")
    assert JobState.EXPIRED is (await ends.api.wait("a")).state


async def test_a_retryable_failure_is_tried_again_later(ends: Ends) -> None:
    """Back-off doubles, the place is kept, and attempts are bounded."""
    await ends.api.admit(job("a"))
    ends.clock.now += 0.01
    for backoff_s in (0.5, 1.0):
        (claim,) = await ends.work.claim(1)
        assert await ends.work.fail(claim, "cold", is_retryable=True)
        assert JobState.QUEUED is await ends.api.state("a")
        ends.clock.now += backoff_s - 0.01
        await ends.api.admit(job(f"younger{backoff_s}"))
        assert f"younger{backoff_s}" in await ends.claimed(1)
        ends.clock.now += 0.02
    (claim,) = await ends.work.claim(1)
    assert ("a", 3) == (claim.job.id, claim.attempt)
    assert await ends.work.fail(claim, "cold", is_retryable=True)
    outcome = await ends.api.wait("a")
    assert (JobState.FAILED, "cold", True) == (outcome.state, outcome.error, outcome.is_retryable)


async def test_a_failure_of_the_job_itself_is_final(ends: Ends) -> None:
    """What another attempt cannot mend is not attempted."""
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(1)
    assert await ends.work.fail(claim, "broken")
    outcome = await ends.api.wait("a")
    assert (JobState.FAILED, "broken", False) == (
        outcome.state, outcome.error, outcome.is_retryable
    )  # fmt: skip


async def test_released_jobs_keep_their_place_and_attempts(ends: Ends) -> None:
    """A worker that stops hands back what it holds, also beyond the bound, and nothing is counted
    against the jobs."""
    await ends.api.admit(job("a", num_images=100))
    ends.clock.now += 0.01
    await ends.work.claim(1)
    await ends.api.admit(job("b", num_images=100))
    await ends.work.release()
    assert 2000 == (await ends.api.stats()).cost_waiting
    claims = await ends.work.claim(200)
    assert [("a", 1), ("b", 1)] == [(claim.job.id, claim.attempt) for claim in claims]


async def test_a_renewed_lease_holds(ends: Ends) -> None:
    """A worker that renews keeps its job for as long as it takes."""
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(1)
    await ends.advance(60, renewing=["a"])
    assert await ends.work.complete(claim, RESULT)
    assert 0 == (await ends.api.stats()).num_redelivered


async def test_a_lost_workers_job_runs_again(ends: Ends) -> None:
    """When its lease has expired a job goes back to its place, and its attempts are its own."""
    await ends.api.admit(job("a"))
    await ends.work.claim(1)
    await ends.lose_worker()
    (claim,) = await ends.work.claim(1)
    assert ("a", 1, False) == (claim.job.id, claim.attempt, claim.is_solo)
    assert await ends.work.complete(claim, RESULT)
    assert 1 == (await ends.api.stats()).num_redelivered


async def test_what_happens_by_itself_is_logged_too(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that goes back because its worker was lost, expires or is given up has its line."""
    caplog.set_level(logging.INFO, "bar.jobs")
    await ends.api.admit(job("late", timeout_s=1.0))
    await ends.advance(2)
    await ends.api.admit(job("a"))
    for _ in range(POLICY.max_crashes):
        await ends.claimed()
        await ends.lose_worker()
    told = [
        (str(vars(line)["job"]), line.getMessage())
        for line in said(caplog, "bar.jobs", logging.INFO)
    ]
    assert 1 == told.count(("late", "job expired"))
    assert POLICY.max_crashes == told.count(("a", "job queued"))
    assert 1 == told.count(("a", "job dead"))


async def test_a_stale_claim_changes_nothing(ends: Ends) -> None:
    """Of two claims of a job only the last ends it, whatever the first one's worker says."""
    await ends.api.admit(job("a"))
    (stale,) = await ends.work.claim(1)
    await ends.lose_worker()
    (claim,) = await ends.work.claim(1)
    assert not await ends.work.complete(stale, replace(RESULT, images=(b"stale",)))
    assert not await ends.work.fail(stale, "stale")
    assert JobState.RUNNING is await ends.api.state("a")
    assert await ends.work.complete(claim, RESULT)
    assert RESULT == (await ends.api.wait("a")).result


async def test_after_an_outage_leases_are_given_time(ends: Ends) -> None:
    """When nobody reaped for two intervals, nothing is taken back for one lease."""
    await ends.api.admit(job("a"))
    await ends.advance(20)
    await ends.work.claim(1)
    ends.clock.now += 30
    await ends.reap()
    assert JobState.RUNNING is await ends.api.state("a")
    assert [] == await ends.renew("a")
    await ends.advance(9, renewing=["a"])
    assert JobState.RUNNING is await ends.api.state("a")


async def test_a_suspect_runs_alone(ends: Ends) -> None:
    """After two lost workers a job runs without company, and before it a worker's slots empty."""
    await ends.api.admit(job("a"))
    for _ in range(2):
        await ends.work.claim(1)
        await ends.lose_worker()
    await ends.api.admit(job("b"))
    (claim,) = await ends.work.claim(16)
    assert ("a", True) == (claim.job.id, claim.is_solo)
    assert [] == await ends.claimed(16)
    assert await ends.work.complete(claim, RESULT)
    assert ["b"] == await ends.claimed(16)


async def test_a_suspect_waits_until_the_others_are_done(ends: Ends) -> None:
    """A busy worker takes no suspect beside its images, and nothing else before it: nobody
    starves."""
    await ends.api.admit(job("a"))
    await ends.work.claim(1)
    await ends.lose_worker()
    await ends.api.admit(job("b"))
    _, other = await ends.work.claim(2)
    await ends.lose("a", renewing="b")
    await ends.api.admit(job("c"))
    assert [] == await ends.claimed(16)
    await ends.work.complete(other, RESULT)
    assert ["a"] == await ends.claimed(16)


async def test_a_job_that_loses_every_worker_is_dead(ends: Ends) -> None:
    """At the cap a job is given up, and kept to be looked at."""
    await ends.api.admit(job("a", timeout_s=6000))
    for _ in range(POLICY.max_crashes):
        assert ["a"] == await ends.claimed(1)
        await ends.lose_worker()
    assert JobState.DEAD is (await ends.api.wait("a")).state
    (letter,) = await ends.api.dead_letters()
    assert ("a", POLICY.max_crashes) == (letter.id, letter.crashes)
    assert letter.job is not None
    assert 1 == letter.job.num_steps // 10


async def test_a_dead_job_is_retried_under_a_new_id(ends: Ends) -> None:
    """A terminal state is never left; a second retry gives the same new job."""
    await ends.api.admit(job("a", timeout_s=6000))
    for _ in range(POLICY.max_crashes):
        await ends.work.claim(1)
        await ends.lose_worker()
    assert "b" == await ends.api.retry_dead("a", "b")
    assert "b" == await ends.api.retry_dead("a", "c")
    assert None is await ends.api.retry_dead("b", "d")
    assert JobState.DEAD is await ends.api.state("a")
    assert [] == await ends.api.dead_letters()
    (claim,) = await ends.work.claim(5)
    assert ("b", 1, False) == (claim.job.id, claim.attempt, claim.is_solo)


async def test_a_follower_sees_every_change(ends: Ends) -> None:
    """A view has the place in the queue, then progress and previews, then the outcome."""
    await ends.api.admit(job("first"))
    ends.clock.now += 0.01
    await ends.api.admit(job("a"))
    view = await ends.api.follow("a", -1, 0.0)
    assert (JobState.QUEUED, 2) == (view.state, view.queue_position)
    _, claim = await ends.work.claim(2)
    view = await ends.api.follow("a", view.version, 0.0)
    assert (JobState.RUNNING, None) == (view.state, view.queue_position)
    await ends.work.progress({"a": JobProgress(share=0.25, eta_s=2.0)})
    preview = PartialImage(index=0, content=b"pre\nview", share=0.25)
    await ends.work.add_partial(claim, preview)
    await ends.settle()
    view = await ends.api.follow("a", -1, 0.0)
    assert (0.25, 2.0, (preview,)) == (view.share, view.eta_s, view.partials)
    await ends.work.complete(claim, RESULT)
    view = await ends.api.follow("a", view.version, 1.0)
    assert view.outcome is not None
    assert RESULT == view.outcome.result


async def test_an_unchanged_job_is_told_after_the_time(ends: Ends) -> None:
    """A follower waits no longer than it asked to."""
    await ends.api.admit(job("a"))
    view = await ends.api.follow("a", -1, 0.0)
    assert view.version == (await ends.api.follow("a", view.version, 0.01)).version


async def test_every_accepted_job_is_counted_in_exactly_one_place(ends: Ends) -> None:
    """Accepted jobs are the waiting, the running and the ended ones together."""
    for index in range(12):
        await ends.api.admit(job(f"{index:02}", num_images=1 + index % 3, timeout_s=10))
        ends.clock.now += 0.001
    claims = await ends.work.claim(8)
    await ends.work.complete(claims[0], RESULT)
    await ends.work.fail(claims[1], "broken")
    await ends.api.cancel(claims[2].job.id)
    await ends.api.cancel("11")
    stats = await ends.api.stats()
    running = [claim.job for claim in claims[3:]]
    assert len(running) == stats.jobs_running
    assert sum(len(job.images) for job in running) == stats.images_running
    assert 12 == stats.num_accepted == (
        stats.jobs_waiting + stats.jobs_running + sum(stats.num_ended.values())
    )  # fmt: skip
    ends.clock.now += 10
    await ends.reap()
    stats = await ends.api.stats()
    assert (0, 0, 0, 0, 0) == (
        stats.jobs_waiting, stats.jobs_running, stats.images_waiting, stats.images_running,
        stats.cost_waiting,
    )  # fmt: skip


async def test_ages_are_read_from_the_clock(ends: Ends) -> None:
    """The oldest waiting job's age and a claim's time in the queue are elapsed time."""
    assert 0.0 == (await ends.api.stats()).oldest_waiting_s
    await ends.api.admit(job("a"))
    ends.clock.now += 3
    await ends.api.admit(job("b"))
    assert 3.0 == (await ends.api.stats()).oldest_waiting_s
    assert [3.0, 0.0] == [claim.queue_s for claim in await ends.work.claim(2)]


async def test_an_idle_worker_wakes_when_a_job_comes(ends: Ends) -> None:
    """The bell is heard: it does not take the look that comes when there was none for a while."""
    with ends.nobody_looking():
        waiting = asyncio.create_task(ends.work.wait_ready())
        await asyncio.sleep(0.05)
        await ends.api.admit(job("a"))
        await waiting
    assert ["a"] == await ends.claimed(1)


async def test_an_answered_job_is_soon_forgotten(ends: Ends) -> None:
    """A job that nobody asks for any more is kept no longer than a retry needs, unless dead."""
    await ends.api.admit(job("a"))
    (claim,) = await ends.work.claim(1)
    await ends.api.forget("a")
    assert JobState.RUNNING is await ends.api.state("a")
    await ends.work.complete(claim, RESULT)
    await ends.api.forget("a")
    assert await ends.api.state("a") in (None, JobState.SUCCEEDED)


async def test_closing_answers_whoever_waits(ends: Ends) -> None:
    """Nobody waits in a process that ends."""
    await ends.api.admit(job("a"))
    waiter = asyncio.create_task(ends.api.wait("a"))
    await asyncio.sleep(0.01)
    await ends.api.close()
    assert JobState.CANCELLED is (await waiter).state
