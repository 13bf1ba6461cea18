"""Facts of the queue: bounded, in order, one terminal state for each job, nobody left waiting."""

import asyncio
from dataclasses import replace

import pytest

from model.config import PRESETS, ImageRequest
from service.errors import QueueFull
from service.job_queue import NUM_REMEMBERED, MemoryJobQueue
from service.jobs import (
    PRIORITY_LEADS_S,
    Job,
    JobProgress,
    JobResult,
    JobState,
    JobTimings,
    PartialImage,
    Priority,
    WorkerStatus,
)
from tests.service.fakes import FakeClock

pytestmark = pytest.mark.anyio

SAMPLING = PRESETS["digits"].sampling
RESULT = JobResult(
    images=(b"image",),
    timings=JobTimings(queue_s=0.0, generation_s=0.0, decode_s=0.0, encode_s=0.0),
)


def job(name: str, num_images: int = 1, timeout_s: float = 60.0) -> Job:
    """Make a job whose images take 10 steps each."""
    requests = [ImageRequest(class_id=0, seed=i, sampling=SAMPLING) for i in range(num_images)]
    return Job(
        id=name, images=tuple(requests), num_steps=10, output_format="png", timeout_s=timeout_s
    )


def queue(max_queued_cost: int = 1000, clock: FakeClock | None = None) -> MemoryJobQueue:
    """Make a queue whose clock stands still."""
    return MemoryJobQueue(max_queued_cost=max_queued_cost, clock=clock or FakeClock())


async def claimed(q: MemoryJobQueue, limit: int = 100) -> list[str]:
    """Claim jobs and return their ids."""
    return [claim.job.id for claim in await q.claim(limit)]


async def test_jobs_are_claimed_in_the_order_of_admission() -> None:
    """The oldest job is claimed first."""
    q = queue()
    for name in "abc":
        await q.admit(job(name))
    assert ["a", "b", "c"] == await claimed(q)


async def test_priority_is_a_lead_that_age_overcomes() -> None:
    """A higher priority is claimed first, unless the other has waited for longer than the lead."""
    clock = FakeClock()
    q = queue(clock=clock)
    lead_s = PRIORITY_LEADS_S["high"]
    admissions: tuple[tuple[str, Priority, float], ...] = (
        ("old", "normal", 2.0),
        ("low", "low", lead_s - 1),
        ("young", "normal", 0.0),
        ("high", "high", 0.0),
    )
    for name, priority, pause_s in admissions:
        await q.admit(replace(job(name), priority=priority))
        clock.now += pause_s
    assert ["old", "high", "young", "low"] == await claimed(q)


async def test_a_followed_job_is_shown_when_it_changes() -> None:
    """`follow` returns at once what is new, else waits for a change or until its time is up."""
    q = queue()
    await q.admit(job("first"))
    await q.admit(job("a"))
    view = await q.follow("a", version=-1, timeout_s=10)
    assert (JobState.QUEUED, 2, 0.0) == (view.state, view.queue_position, view.share)
    assert view == await q.follow("a", view.version, timeout_s=0.001)
    following = asyncio.create_task(q.follow("a", view.version, timeout_s=10))
    await asyncio.sleep(0)
    _, claim = await q.claim(2)
    view = await following
    assert (JobState.RUNNING, None) == (view.state, view.queue_position)
    following = asyncio.create_task(q.follow("a", view.version, timeout_s=10))
    await asyncio.sleep(0)
    await q.progress(
        {"a": JobProgress(share=0.5, eta_s=3.0), "gone": JobProgress(share=0, eta_s=0)}
    )
    view = await following
    assert (0.5, 3.0) == (view.share, view.eta_s)
    partial = PartialImage(index=0, content=b"half", share=0.5)
    await q.add_partial(claim, partial)
    view = await q.follow("a", view.version, timeout_s=10)
    assert (partial,) == view.partials
    assert await q.complete(claim, RESULT)
    view = await q.follow("a", view.version, timeout_s=10)
    assert view.outcome is not None
    assert RESULT == view.outcome.result


async def test_what_comes_after_the_end_changes_nothing() -> None:
    """Progress and partial images of a job that has ended are dropped."""
    q = queue()
    await q.admit(job("a"))
    (claim,) = await q.claim(1)
    await q.expire("a")
    view = await q.follow("a", version=-1, timeout_s=10)
    await q.progress({"a": JobProgress(share=0.5, eta_s=3.0)})
    await q.add_partial(claim, PartialImage(index=0, content=b"half", share=0.5))
    assert view == await q.follow("a", version=-1, timeout_s=10)


async def test_time_left_of_a_waiting_job_counts_all_before_it() -> None:
    """It is the work of workers and queue ahead, at their measured pace, and its own."""
    q = queue()
    await q.admit(job("before", num_images=2))
    await q.admit(job("a"))
    assert (await q.follow("a", -1, 0)).eta_s is None
    status = WorkerStatus(name="w", phase="ready", num_slots=2, step_s=0.5, steps_left=8)
    await q.report(status)
    assert (8 + 20) * 0.5 / 2 + 10 * 0.5 == (await q.follow("a", -1, 0)).eta_s


async def test_following_needs_a_job() -> None:
    """A job that the queue does not know cannot be followed."""
    with pytest.raises(KeyError):
        await queue().follow("a", -1, 0)


async def test_a_claim_stops_at_its_limit_of_images() -> None:
    """A claim takes jobs until it has as many images as asked; only the last may exceed that."""
    q = queue()
    for name in "abc":
        await q.admit(job(name, num_images=2))
    assert ["a", "b"] == await claimed(q, limit=3)
    assert [] == await claimed(q, limit=0)
    assert ["c"] == await claimed(q, limit=1)


async def test_the_bound_counts_images_times_steps_exactly() -> None:
    """Queued cost may reach the bound and not exceed it; claiming makes room."""
    q = queue(max_queued_cost=40)
    await q.admit(job("a", num_images=3))
    with pytest.raises(QueueFull):
        await q.admit(job("b", num_images=2))
    await q.admit(job("c", num_images=1))
    await q.claim(1)
    await q.admit(job("b", num_images=2))
    assert 30 == (await q.stats()).cost_waiting


async def test_a_full_queue_says_when_there_should_be_room() -> None:
    """The time to wait is the queued cost over the measured steps a second, within bounds."""
    q = queue(max_queued_cost=40)
    await q.admit(job("a", num_images=4))
    with pytest.raises(QueueFull) as unmeasured:
        await q.admit(job("b"))
    assert 1.0 == unmeasured.value.retry_after_s
    await q.report(WorkerStatus(name="w", phase="ready", num_slots=2, free_slots=0, step_s=0.5))
    with pytest.raises(QueueFull) as measured:
        await q.admit(job("b"))
    assert 10.0 == measured.value.retry_after_s


async def test_admitting_a_known_job_again_changes_nothing() -> None:
    """A retried admission is harmless, whatever has become of the job."""
    q = queue()
    await q.admit(job("a"))
    await q.admit(job("a"))
    (claim,) = await q.claim(10)
    await q.admit(job("a"))
    await q.complete(claim, RESULT)
    await q.admit(job("a"))
    stats = await q.stats()
    assert (1, 0, 0) == (stats.num_accepted, stats.jobs_waiting, stats.jobs_running)


async def test_a_completed_job_reaches_its_waiter_and_is_forgotten() -> None:
    """`wait` gives the result once; the queue keeps nothing of it."""
    q = queue()
    await q.admit(job("a"))
    waiter = asyncio.create_task(q.wait("a"))
    (claim,) = await q.claim(1)
    assert JobState.RUNNING is await q.state("a")
    assert await q.complete(claim, RESULT)
    outcome = await waiter
    assert (JobState.SUCCEEDED, RESULT) == (outcome.state, outcome.result)
    assert None is await q.state("a")
    with pytest.raises(KeyError):
        await q.wait("a")


async def test_an_outcome_waits_for_its_waiter() -> None:
    """A job may end before anybody waits for it."""
    q = queue()
    await q.admit(job("a"))
    (claim,) = await q.claim(1)
    await q.fail(claim, "broken")
    outcome = await q.wait("a")
    assert (JobState.FAILED, "broken") == (outcome.state, outcome.error)


async def test_a_cancelled_waiting_job_is_never_claimed() -> None:
    """Cancelling takes a waiting job out of the queue and gives its cost back."""
    q = queue()
    await q.admit(job("a"))
    await q.admit(job("b"))
    assert JobState.QUEUED is await q.cancel("a")
    assert 10 == (await q.stats()).cost_waiting
    assert ["b"] == await claimed(q)


async def test_a_cancelled_running_job_is_revoked_and_its_result_refused() -> None:
    """The worker learns of the cancellation, and a late completion or failure is void."""
    q = queue()
    await q.admit(job("a"))
    (claim,) = await q.claim(1)
    assert [] == await q.revoked(["a"])
    assert JobState.RUNNING is await q.cancel("a")
    assert ["a"] == await q.revoked(["a"])
    assert not await q.complete(claim, RESULT)
    assert not await q.fail(claim, "late")
    assert 1 == (await q.stats()).num_ended[JobState.CANCELLED]


async def test_a_terminal_state_is_entered_once() -> None:
    """What happens to a job after its end changes neither its state nor any count."""
    q = queue()
    await q.admit(job("a"))
    (claim,) = await q.claim(1)
    assert await q.complete(claim, RESULT)
    assert not await q.complete(claim, RESULT)
    assert not await q.fail(claim, "late")
    assert JobState.SUCCEEDED is await q.expire("a")
    assert JobState.SUCCEEDED is await q.state("a")
    assert JobState.SUCCEEDED is await q.cancel("a")
    assert None is await q.cancel("a")
    ended = (await q.stats()).num_ended
    assert {JobState.SUCCEEDED: 1} == {state: n for state, n in ended.items() if n}


async def test_a_late_job_expires_instead_of_being_claimed() -> None:
    """A job whose time passed in the queue takes no slot."""
    clock = FakeClock()
    q = queue(clock=clock)
    await q.admit(job("late", timeout_s=5))
    await q.admit(job("a", timeout_s=60))
    clock.now += 5
    assert ["a"] == await claimed(q)
    assert JobState.EXPIRED is (await q.wait("late")).state


async def test_a_running_job_expires_when_its_time_is_up() -> None:
    """A worker that asks is told to drop a job that is late."""
    clock = FakeClock()
    q = queue(clock=clock)
    await q.admit(job("a", timeout_s=5))
    await q.claim(1)
    clock.now += 4.9
    assert [] == await q.revoked(["a"])
    clock.now += 0.1
    assert ["a"] == await q.revoked(["a"])
    assert JobState.EXPIRED is (await q.wait("a")).state


async def test_an_idle_worker_wakes_when_a_job_comes() -> None:
    """`wait_ready` returns only when something waits to be claimed."""
    q = queue()
    waiting = asyncio.create_task(q.wait_ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    await q.admit(job("a"))
    await waiting
    await q.claim(1)
    waiting = asyncio.create_task(q.wait_ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_closing_cancels_what_has_not_ended() -> None:
    """Nobody waits for a queue that is closed."""
    q = queue()
    for name in "abc":
        await q.admit(job(name))
    (claim,) = await q.claim(1)
    await q.complete(claim, RESULT)
    await q.claim(1)
    await q.close()
    states = [(await q.wait(name)).state for name in "abc"]
    assert [JobState.SUCCEEDED, JobState.CANCELLED, JobState.CANCELLED] == states


async def test_every_accepted_job_is_counted_in_exactly_one_place() -> None:
    """Accepted jobs are the waiting, the running and the ended ones together."""
    clock = FakeClock()
    q = queue(clock=clock)
    for index in range(12):
        await q.admit(job(str(index), num_images=1 + index % 3, timeout_s=10 * (1 + index % 2)))
    claims = await q.claim(8)
    await q.complete(claims[0], RESULT)
    await q.fail(claims[1], "broken")
    await q.cancel(claims[2].job.id)
    await q.cancel("11")
    clock.now += 10
    await q.revoked([claim.job.id for claim in claims])
    stats = await q.stats()
    ended = sum(stats.num_ended.values())
    assert stats.num_accepted == stats.jobs_waiting + stats.jobs_running + ended
    reached = {state for state in JobState if state.is_terminal} - {JobState.DEAD}
    assert all(stats.num_ended[state] for state in reached)


async def test_ages_are_read_from_the_clock() -> None:
    """The oldest waiting job's age and a claim's time in the queue are elapsed time."""
    clock = FakeClock()
    q = queue(clock=clock)
    assert 0.0 == (await q.stats()).oldest_waiting_s
    await q.admit(job("a"))
    clock.now += 3
    await q.admit(job("b"))
    assert 3.0 == (await q.stats()).oldest_waiting_s
    assert [3.0, 0.0] == [claim.queue_s for claim in await q.claim(2)]


async def test_memory_of_ended_jobs_is_bounded() -> None:
    """Ended jobs that nobody waits for are forgotten, the oldest first."""
    q = queue(max_queued_cost=10**6)
    for index in range(NUM_REMEMBERED + 5):
        await q.admit(job(str(index)))
    for claim in await q.claim(10**6):
        await q.complete(claim, RESULT)
    known = [await q.state(str(index)) for index in range(NUM_REMEMBERED + 5)]
    assert [None] * 5 == known[:5]
    assert {JobState.SUCCEEDED} == set(known[5:])
