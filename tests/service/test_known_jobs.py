"""Facts of every queue about what it knows: jobs found, listed, asked for again and forgotten."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from service.errors import IdempotencyMismatch
from service.jobs import IdempotencyKey, JobProgress, JobState, KnownJob, PartialImage
from service.memory_queue import MemoryJobQueue
from service.redis_client import command
from service.redis_queue import RedisJobQueue
from tests.service.queue_ends import POLICY, RESULT, Ends, ends_of, job

pytestmark = pytest.mark.anyio

PREVIEW = PartialImage(index=0, content=b"pre", share=0.5)
SHORT = replace(POLICY, result_ttl_s=0.05, max_records=3, max_listed=4)


@pytest.fixture(params=["memory", "redis"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """Both ends of a queue that is empty."""
    async with ends_of(request.param, request) as made:
        yield made


@pytest.fixture(params=["memory", "redis"])
async def short(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """Both ends of a queue that does not remember much, or long."""
    async with ends_of(request.param, request, SHORT) as made:
        yield made


async def succeed(ends: Ends, name: str) -> None:
    """Let a job be admitted and made."""
    await ends.api.admit(job(name))
    (claim,) = await ends.work.claim(1)
    await ends.work.add_partial(claim, PREVIEW)
    assert await ends.work.complete(claim, RESULT)


async def found(ends: Ends, name: str) -> KnownJob:
    """Return what is known of a job that must be known."""
    known = await ends.api.find(name)
    assert known is not None
    return known


def ids(jobs: list[KnownJob]) -> list[str]:
    """Name the jobs."""
    return [known.job.id for known in jobs]


async def test_all_of_a_job_is_found(ends: Ends) -> None:
    """What a client said comes back as it was, with where the job is and since when."""
    sent = job(
        "a",
        num_images=2,
        owner="ann",
        created_at=1753000000.25,
        metadata={"to": "Ünal", "": "{}"},
        warnings=("style has no effect", ""),
        response_format="url",
        fingerprint="f",
        traceparent="00-1-2-01",
    )
    await ends.api.admit(sent)
    known = await found(ends, "a")
    assert (sent, JobState.QUEUED, 1) == (known.job, known.view.state, known.view.queue_position)
    assert (None, None) == (known.started_at, known.ended_at)
    (claim,) = await ends.work.claim(2)
    assert sent == claim.job
    started_at = (await found(ends, "a")).started_at
    ends.clock.now += 3
    await ends.work.complete(claim, RESULT)
    known = await found(ends, "a")
    assert known.started_at is not None
    assert known.ended_at is not None
    assert started_at == pytest.approx(known.started_at, abs=0.01)
    assert 3.0 == pytest.approx(known.ended_at - known.started_at, abs=0.01)


async def test_a_job_is_found_with_its_images_or_without(ends: Ends) -> None:
    """Images and previews are fetched only for those who want them."""
    await succeed(ends, "a")
    view = (await found(ends, "a")).view
    assert view.outcome is not None
    assert (RESULT, (PREVIEW,)) == (view.outcome.result, view.partials)
    known = await ends.api.find("a", with_result=False)
    assert known is not None
    assert known.view.outcome is not None
    assert (JobState.SUCCEEDED, None, ()) == (
        known.view.outcome.state, known.view.outcome.result, known.view.partials
    )  # fmt: skip
    assert known.view == replace(view, partials=(), outcome=replace(view.outcome, result=None)), (
        "nothing else differs"
    )


async def test_a_job_that_waits_again_has_not_started(ends: Ends) -> None:
    """The time of a claim that was given up is nobody's start."""
    for give_up in ("release", "fail", "lose"):
        await ends.api.admit(job(give_up))
        (claim,) = await ends.work.claim(1)
        if give_up == "release":
            await ends.work.release()
        elif give_up == "fail":
            await ends.work.fail(claim, "cold", is_retryable=True)
        else:
            await ends.lose_worker()
        assert None is (await found(ends, give_up)).started_at
        await ends.api.cancel(give_up)
        assert None is (await found(ends, give_up)).started_at


async def test_an_ended_job_has_no_time_left(ends: Ends) -> None:
    """One that has succeeded is done to the last token; one that was stopped is where it was."""
    for name in ("done", "stopped"):
        await ends.api.admit(job(name))
        (claim,) = await ends.work.claim(1)
        await ends.work.progress({name: JobProgress(share=0.75, eta_s=2.5)})
        await ends.settle()
        view = (await found(ends, name)).view
        assert (0.75, 2.5) == (view.share, view.eta_s)
        if name == "done":
            await ends.work.complete(claim, RESULT)
        else:
            await ends.api.cancel(name)
    assert [(1.0, None), (0.75, None)] == [
        (view.share, view.eta_s)
        for view in [(await found(ends, name)).view for name in ("done", "stopped")]
    ]


async def test_an_unknown_job_is_not_found(ends: Ends) -> None:
    """None is no error: whoever asks decides what it means."""
    assert None is await ends.api.find("a")
    assert [] == await ends.api.jobs_of("anyone")


async def test_an_owners_jobs_are_listed_newest_first(ends: Ends) -> None:
    """By the time of the request, then by id; others' jobs are not among them."""
    for name, created_at in [("b", 2.0), ("a", 3.5), ("d", 1.0), ("c", 2.0), ("e", 3.25)]:
        await ends.api.admit(job(name, owner="ann", created_at=created_at))
    await ends.api.admit(job("z", owner="bob", created_at=9.0))
    assert ["a", "e", "c", "b", "d"] == ids(await ends.api.jobs_of("ann"))
    assert ["a", "e"] == ids(await ends.api.jobs_of("ann", limit=2))
    assert [] == await ends.api.jobs_of("ann", limit=0)
    assert ["z"] == ids(await ends.api.jobs_of("bob"))


async def test_a_list_goes_on_behind_the_last_one_seen(ends: Ends) -> None:
    """Page after page has every job once, also where times are equal or the last one is gone."""
    names = ["Z", "a-b", "aB", "a_b", "ab", "b"]
    for index, name in enumerate(names):
        await ends.api.admit(job(name, created_at=1.0 + index // 3))
    everything = ids(await ends.api.jobs_of("anyone"))
    assert sorted(names) == sorted(everything)
    seen: list[str] = []
    before = None
    while page := await ends.api.jobs_of("anyone", before=before, limit=2):
        seen += ids(page)
        before = page[-1].job.created_at, page[-1].job.id
    assert everything == seen
    assert ["a-b", "Z"] == ids(await ends.api.jobs_of("anyone", before=(1.0, "a0")))
    assert everything == ids(await ends.api.jobs_of("anyone", before=(3.0, "")))
    assert [] == await ends.api.jobs_of("anyone", before=(0.5, "zz"))
    assert everything == ids(await ends.api.jobs_of("anyone")), "looking changes nothing"


async def test_a_list_may_be_of_one_state(ends: Ends) -> None:
    """To its client a dead job is a failed one; every other state is itself."""
    await ends.api.admit(job("dead", timeout_s=6000, created_at=1))
    for _ in range(POLICY.max_crashes):
        await ends.work.claim(1)
        await ends.lose_worker()
    await ends.api.admit(job("failed", created_at=2))
    (claim,) = await ends.work.claim(1)
    await ends.work.fail(claim, "no")
    await succeed(ends, "done")
    await ends.api.admit(job("running"))
    await ends.work.claim(1)
    await ends.api.admit(job("queued"))
    await ends.api.admit(job("cancelled"))
    await ends.api.cancel("cancelled")

    async def of(state: JobState, limit: int = 20) -> list[str]:
        return ids(await ends.api.jobs_of("anyone", state=state, limit=limit))

    assert ["failed", "dead"] == await of(JobState.FAILED)
    assert ["failed"] == await of(JobState.FAILED, limit=1)
    assert ["dead"] == await of(JobState.DEAD)
    assert ["done"] == await of(JobState.SUCCEEDED)
    assert ["running"] == await of(JobState.RUNNING)
    assert ["queued"] == await of(JobState.QUEUED)
    assert ["cancelled"] == await of(JobState.CANCELLED)
    assert [] == await of(JobState.EXPIRED)


async def test_a_list_has_no_images(ends: Ends) -> None:
    """It says how jobs are, and where they stand; whoever wants images asks for one job."""
    await succeed(ends, "done")
    await ends.api.admit(job("a", created_at=1))
    queued, done = await ends.api.jobs_of("anyone")
    assert (JobState.QUEUED, 1) == (queued.view.state, queued.view.queue_position)
    assert done.view.outcome is not None
    assert (JobState.SUCCEEDED, None) == (done.view.outcome.state, done.view.outcome.result)
    assert () == done.view.partials


async def test_an_id_stands_for_one_request(ends: Ends) -> None:
    """The same id with another fingerprint, or from another owner, is refused, even ended."""
    first = job("a", owner="ann", fingerprint="body")
    assert "a" == await ends.api.admit(first)
    for again in range(2):
        assert "a" == await ends.api.admit(replace(first, created_at=5.0))
        with pytest.raises(IdempotencyMismatch, match="the id"):
            await ends.api.admit(replace(first, fingerprint="other"))
        with pytest.raises(IdempotencyMismatch, match="the id"):
            await ends.api.admit(replace(first, owner="bob"))
        if not again:
            await ends.api.cancel("a")
    assert 1 == (await ends.api.stats()).num_accepted


async def test_a_key_outlives_the_record_of_its_job(ends: Ends) -> None:
    """Asked for again when nothing is left of it, a job is made again under its first id."""
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    await ends.api.admit(job("a"), idempotency=key)
    await ends.api.cancel("a")
    await ends.api.forget("a")
    await ends.settle()
    assert "a" == await ends.api.admit(job("b"), idempotency=key)
    assert JobState.CANCELLED is await ends.api.state("a"), "what is known is not made again"
    await ends.advance(POLICY.answered_ttl_s + 1)
    assert None is await ends.api.state("a")
    assert "a" == await ends.api.admit(job("c"), idempotency=key)
    assert "a" == await ends.api.admit(job("d"), idempotency=key)
    assert ["a"] == await ends.claimed()
    await ends.advance(2)
    assert JobState.RUNNING is await ends.api.state("a")
    with pytest.raises(IdempotencyMismatch, match="key"):
        await ends.api.admit(job("e"), idempotency=replace(key, fingerprint="other"))


async def test_a_key_is_known_to_be_used(ends: Ends) -> None:
    """By its owner alone, with whatever body, and as long as it stands for a request."""
    key = IdempotencyKey(key_hash="k", fingerprint="body")
    await ends.api.admit(job("a", owner="ann"), idempotency=key)
    assert await ends.api.knows_key("ann", key)
    assert await ends.api.knows_key("ann", replace(key, fingerprint="other"))
    assert not await ends.api.knows_key("bob", key)
    assert not await ends.api.knows_key("ann", replace(key, key_hash="l"))


async def test_a_record_outlives_its_result(short: Ends) -> None:
    """The images go first: then the job has still succeeded, and nobody can have them."""
    await succeed(short, "a")
    await asyncio.sleep(2 * SHORT.result_ttl_s)
    await short.advance(1)
    known = await found(short, "a")
    assert known.view.outcome is not None
    assert (JobState.SUCCEEDED, None, None) == (
        known.view.outcome.state, known.view.outcome.result, known.view.outcome.error
    )  # fmt: skip
    assert None is (await short.api.wait("a")).result
    assert ["a"] == ids(await short.api.jobs_of("anyone"))


async def test_a_record_goes_when_its_time_has_come(ends: Ends) -> None:
    """Then a job is neither found nor listed, and its id is free."""
    await succeed(ends, "a")
    await ends.api.admit(job("running", timeout_s=2 * POLICY.record_ttl_s))
    await ends.work.claim(1)
    ends.clock.now += POLICY.record_ttl_s - 1
    await ends.reap()
    assert ["running", "a"] == ids(await ends.api.jobs_of("anyone"))
    await ends.advance(2, renewing=["running"])
    assert None is await ends.api.find("a")
    assert ["running"] == ids(await ends.api.jobs_of("anyone"))
    await ends.api.admit(job("a"))
    assert 3 == (await ends.api.stats()).num_accepted


async def test_an_answer_never_lengthens_a_life(ends: Ends) -> None:
    """A job that is answered just before its record goes, goes when it would have gone."""
    await ends.api.admit(job("a"))
    await ends.api.cancel("a")
    ends.clock.now += POLICY.record_ttl_s - 2
    await ends.api.forget("a")
    await ends.settle()
    await ends.advance(3)
    assert await ends.api.find("a") is None


async def test_an_answered_job_is_known_for_a_minute(ends: Ends) -> None:
    """A client that waited has its images: a repeated request finds them, and soon nobody."""
    await succeed(ends, "a")
    await ends.api.forget("a")
    await ends.api.forget("a")
    await ends.settle()
    await ends.advance(POLICY.answered_ttl_s - 1)
    assert RESULT == (await ends.api.wait("a")).result
    assert ["a"] == ids(await ends.api.jobs_of("anyone"))
    await ends.api.forget("a")
    await ends.settle()
    await ends.advance(1)
    assert None is await ends.api.find("a"), "to forget again does not prolong"
    assert [] == await ends.api.jobs_of("anyone")


async def test_what_is_remembered_is_bounded(short: Ends) -> None:
    """Of ended jobs the last are known, and of an owner's the newest listed."""
    for index in range(6):
        await short.api.admit(job(f"{index}", created_at=index))
    assert ["5", "4", "3", "2"] == ids(await short.api.jobs_of("anyone"))
    for index in range(6):
        await short.api.cancel(f"{index}")
        short.clock.now += 0.001
    await short.reap()
    await short.reap()
    assert ["5", "4", "3"] == ids(await short.api.jobs_of("anyone"))
    assert [None] * 3 == [await short.api.find(f"{index}") for index in range(3)]


async def test_a_dead_job_tried_again_keeps_its_place_in_the_list(ends: Ends) -> None:
    """It is the same request: asked for when it was, by whom it was."""
    await ends.api.admit(job("a", owner="ann", timeout_s=6000, created_at=7.0, fingerprint="f"))
    for _ in range(POLICY.max_crashes):
        await ends.work.claim(1)
        await ends.lose_worker()
    await ends.api.admit(job("later", owner="ann", created_at=8.0))
    assert "b" == await ends.api.retry_dead("a", "b")
    assert ["later", "b", "a"] == ids(await ends.api.jobs_of("ann"))
    assert "b" == await ends.api.admit(job("b", owner="ann", fingerprint="f"))


async def test_nobody_needs_to_wait_for_a_job_to_expire(ends: Ends) -> None:
    """A job that was accepted for later ends at its deadline, waiting or running."""
    await ends.api.admit(job("running", timeout_s=5), is_awaited=False)
    await ends.work.claim(1)
    await ends.api.admit(job("waiting", timeout_s=5), is_awaited=False)
    await ends.advance(4, renewing=["running"])
    assert JobState.RUNNING is await ends.api.state("running")
    await ends.advance(1, renewing=["running"])
    assert [JobState.EXPIRED] * 2 == [await ends.api.state(i) for i in ("running", "waiting")]


async def test_one_who_did_not_ask_may_wait(ends: Ends) -> None:
    """The outcome of a job reaches everybody who follows it."""
    await ends.api.admit(job("a"), is_awaited=False)
    waiters = [asyncio.create_task(ends.api.wait("a")) for _ in range(2)]
    following = asyncio.create_task(ends.api.follow("a", 0, 5.0))
    (claim,) = await ends.work.claim(1)
    await ends.work.progress({"a": JobProgress(share=0.5, eta_s=1.0)})
    await ends.work.complete(claim, RESULT)
    if isinstance(ends.api, RedisJobQueue):
        await ends.api._reconcile()
    assert [RESULT, RESULT] == [(await waiter).result for waiter in waiters]
    assert (await following).version


async def test_memory_keeps_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest images go before their time, and their records stay."""
    monkeypatch.setattr("service.memory_archive.MAX_RESULT_BYTES", 20)
    queue = MemoryJobQueue(POLICY)
    for name in "abc":
        await queue.admit(job(name))
        (claim,) = await queue.claim(1)
        await queue.add_partial(claim, PREVIEW)
        await queue.complete(claim, RESULT)  # 10 bytes with the preview
    results = [(await queue.wait(name)).result for name in "abc"]
    assert [None, RESULT, RESULT] == results


async def test_a_damaged_record_is_not_listed(request: pytest.FixtureRequest) -> None:
    """Whoever damages a job on the server harms that job alone: the others are listed."""
    async with ends_of("redis", request) as ends:
        assert isinstance(ends.api, RedisJobQueue)
        for name in "abc":
            await ends.api.admit(job(name))
        key = ends.api._keys.job("b")
        await command(ends.api._client, "HSET", key, "payload", b'{"version":1}')
        assert ["c", "a"] == ids(await ends.api.jobs_of("anyone", limit=2))
        with pytest.raises(Exception, match="damaged"):
            await ends.api.find("b")
