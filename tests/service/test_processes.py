"""Facts of separate processes: APIs and workers, and any of them may die, stop or be replaced."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.worker_process import EXIT_STALLED
from tests.service.fleet import (
    Fleet,
    Process,
    are_images,
    ask,
    ask_for_later,
    asking,
    client_of,
    end_of,
    is_image,
    until,
)
from tests.service.worker_under_test import POISON

pytestmark = pytest.mark.anyio


async def test_a_killed_workers_jobs_run_elsewhere(fleet: Fleet) -> None:
    """Kill -9: every client gets its own image, within a lease and a second more."""
    fleet.lease_s = 1.0
    first = fleet.worker()
    first.send_signal(signal.SIGUSR2)
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = asking(client, range(4))
        await fleet.running(1)
        num_lost = fleet.size("lease")
        first.kill()
        fleet.worker()
        assert await are_images(tasks, range(4))
    assert 4 == fleet.counter("accepted") == fleet.counter("ended:succeeded")
    assert num_lost == fleet.counter("redelivered")


async def test_a_stopped_worker_wakes_to_find_its_result_refused(fleet: Fleet) -> None:
    """SIGSTOP between computed and stored, past the lease: another's result stands."""
    fleet.lease_s = 2.0
    sleeper = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        sleeper.send_signal(signal.SIGUSR1)
        task = asyncio.create_task(ask(client, 1))
        await fleet.running(1)
        await asyncio.sleep(1.0)
        fleet.worker()
        reply = await task
        sleeper.send_signal(signal.SIGCONT)
        assert is_image(reply, 1)
        assert is_image(await ask(client, 2), 2)
    assert (2, 1) == (fleet.counter("ended:succeeded"), fleet.counter("redelivered"))


async def test_a_hung_worker_ends_and_others_take_over(fleet: Fleet) -> None:
    """No step finishes for --stall-s: the worker ends with a status of its own, and the next one
    makes its images."""
    fleet.lease_s = 1.0
    hung = fleet.worker(0.0, "--stall-s", "1")
    _, url = fleet.api()
    async with client_of(url) as client:
        hung.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(3))
        await fleet.running(1)
        fleet.worker()
        assert await are_images(tasks, range(3))
        assert EXIT_STALLED == await end_of(hung)
    assert 3 == fleet.counter("ended:succeeded")


async def test_sigterm_under_load_costs_nothing(fleet: Fleet) -> None:
    """Workers that are replaced one by one finish or hand back; no client sees an error, no job
    loses an attempt, and all end with status 0."""
    first = fleet.worker(0.01)
    _, url = fleet.api()
    async with client_of(url) as client:
        tasks = asking(client, range(12))
        await fleet.running(1)
        fleet.worker(0.01)
        first.send_signal(signal.SIGTERM)
        assert await are_images(tasks, range(12))
        assert 0 == await end_of(first)
    assert 0 == fleet.counter("redelivered")


async def test_a_worker_out_of_grace_hands_back(fleet: Fleet) -> None:
    """What is not done at the end of the grace time is somebody else's at once: its lease, longer
    than anybody waits here, does not matter, and no attempt is counted."""
    fleet.lease_s = 600.0
    slow = fleet.worker(0.0, "--shutdown-grace-s", "0.3")
    _, url = fleet.api()
    async with client_of(url) as client:
        slow.send_signal(signal.SIGUSR2)
        task = asyncio.create_task(ask(client, 1))
        await fleet.running(1)
        slow.send_signal(signal.SIGTERM)
        assert 0 == await end_of(slow)
        fleet.worker()
        assert is_image(await task, 1)
    assert 0 == fleet.counter("redelivered")


async def test_an_api_that_stops_answers_what_waits(fleet: Fleet) -> None:
    """SIGTERM on the API: whoever was accepted gets the image; status 0."""
    fleet.worker(0.02)
    api, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1))
        await fleet.running(1)
        api.send_signal(signal.SIGTERM)
        assert is_image(await task, 1)
    assert 0 == await end_of(api)


async def test_an_api_that_is_killed_leaves_its_jobs_to_end(fleet: Fleet) -> None:
    """Nobody waits for them any more, and the queue is empty all the same."""
    fleet.worker(0.02)
    api, url = fleet.api()
    async with client_of(url) as client:
        task = asyncio.create_task(ask(client, 1))
        await fleet.running(1)
        api.kill()
        with pytest.raises(httpx.HTTPError):
            await task
    await until(lambda: fleet.counter("ended:succeeded") == 1)


async def test_what_a_killed_api_accepted_is_read_elsewhere(fleet: Fleet) -> None:
    """A generation that was answered with 202 is at the same path of every other API: while it
    runs, for a client that waits there, and when it has ended."""
    worker = fleet.worker()
    (api, url), (_, other_url) = fleet.api(), fleet.api()
    async with client_of(url) as client, client_of(other_url) as other:
        worker.send_signal(signal.SIGUSR2)
        path = await ask_for_later(client, 3)
        await fleet.running(1)
        api.kill()
        assert "running" == (await other.get(path)).json()["status"]
        waiting = asyncio.create_task(other.get(path, params={"wait": 30}))
        worker.send_signal(signal.SIGUSR2)
        assert "succeeded" == (await waiting).json()["status"]
        assert is_image(await other.get(f"{path}/content"), 3)


async def test_a_client_that_leaves_frees_its_worker(fleet: Fleet) -> None:
    """A closed connection ends its running job at the next step, and its waiting one at once."""
    fleet.worker(0.05)
    _, url = fleet.api()
    async with client_of(url) as client:
        leaving = asking(client, range(4))  # as many as there are slots
        await fleet.running(4)
        leaving += asking(client, range(4, 6))
        await fleet.accepted(6)
        assert 2 == fleet.size("ready")
        for task in leaving:
            task.cancel()
        await until(lambda: fleet.counter("ended:cancelled") == 6)
        assert (0, 0) == (fleet.size("lease"), fleet.size("ready"))
        assert is_image(await ask(client, 7), 7)
    assert 1 == fleet.counter("ended:succeeded")


async def test_a_full_queue_is_429_exactly_at_the_bound(fleet: Fleet) -> None:
    """As much waits as may; the next request is refused with Retry-After while nothing moves."""
    worker = fleet.worker()
    _, url = fleet.api("--max-queued-steps", "32", "--max-images", "1")
    async with client_of(url) as client:
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(client, range(1))
        await fleet.running(1)  # which does not count
        tasks += asking(client, range(1, 3))  # two images of 16 steps
        await fleet.accepted(3)
        reply = await ask(client, 3)
        assert (429, "queue_full") == (reply.status_code, reply.json()["error"]["code"])
        assert int(reply.headers["retry-after"]) >= 1
        assert not any(task.done() for task in tasks)
        worker.send_signal(signal.SIGUSR2)
        assert await are_images(tasks, range(3))
    assert 3 == fleet.counter("accepted")


async def test_an_owners_quota_is_exact_over_all_apis(fleet: Fleet) -> None:
    """Three jobs of one caller may be open, whichever APIs they came by; the next is refused."""
    worker = fleet.worker()
    urls = [fleet.api("--max-owner-jobs", "3")[1] for _ in range(2)]
    async with client_of(urls[0]) as one, client_of(urls[1]) as other:
        worker.send_signal(signal.SIGUSR2)
        tasks = asking(one, range(2)) + asking(other, range(2, 3))
        await fleet.accepted(3)
        for client in (one, other):
            reply = await ask(client, 9)
            assert (429, "quota_exceeded") == (reply.status_code, reply.json()["error"]["code"])
            assert "retry-after" in reply.headers
        worker.send_signal(signal.SIGUSR2)
        assert await are_images(tasks, range(3))
        assert is_image(await ask(other, 9), 9)


async def test_only_the_job_that_kills_ends_dead(fleet: Fleet) -> None:
    """Its batch-mates get their images, it gets 500, and it can be looked at."""
    fleet.lease_s = 1.0
    _, url = fleet.api()
    starting = [fleet.start_worker(0.01) for _ in range(2)]

    async def keep_workers(stop: asyncio.Event) -> None:
        while not stop.is_set():
            for i, worker in enumerate(starting):
                if worker.poll() is not None:
                    starting[i] = fleet.start_worker(0.01)
            await asyncio.sleep(0.02)

    stop = asyncio.Event()
    keeping = asyncio.create_task(keep_workers(stop))
    async with client_of(url) as client:
        while (await ask(client, 1)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        tasks = [asyncio.create_task(ask(client, seed)) for seed in (POISON, 2, 3)]
        poisoned, *others = await asyncio.gather(*tasks)
    stop.set()
    await keeping
    assert 500 == poisoned.status_code
    assert all(is_image(reply, seed) for seed, reply in zip((2, 3), others, strict=True))
    assert '"crashes": 6' in await dead_letters(fleet)
    assert 1 == fleet.counter("ended:dead")


async def dead_letters(fleet: Fleet) -> str:
    """Return what `bar queue dead` prints."""
    command = [sys.executable, "-m", "service", "queue", "dead", "--redis-url", fleet.server.url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    return done.stdout


async def test_an_unknown_model_is_refused_with_those_that_are_served(fleet: Fleet) -> None:
    """Requests are routed by their model; one that nobody serves says who is there."""
    _, url = fleet.api("--model", "digits,bar-b")
    async with client_of(url) as client:
        reply = await ask(client, 1, model="bar-x")
        assert 404 == reply.status_code
        assert "digits, bar-b" in reply.text
        assert 503 == (await ask(client, 1, model="bar-b")).status_code


async def test_every_model_has_a_queue_and_workers_of_its_own(
    fleet: Fleet, tiny_model_dir: Path
) -> None:
    """One API serves two models: each request goes to the queue of its model, and to a worker of
    that queue alone."""
    digits, tiny = fleet.worker(), fleet.worker(0.0, "--model", str(tiny_model_dir))
    _, url = fleet.api("--model", f"digits,{tiny_model_dir}")
    async with client_of(url) as client:
        assert is_image(await ask(client, 1), 1)
        digits.send_signal(signal.SIGUSR2)
        waiting = asyncio.create_task(ask(client, 2, model="digits"))
        await fleet.running(1)
        assert 200 == (await ask(client, 3, model="tiny")).status_code  # beside one that hangs
        digits.send_signal(signal.SIGUSR2)
        assert is_image(await waiting, 2)
    assert 2 == fleet.counter("ended:succeeded")
    assert b"1" == fleet.server.client.hget("{bar:tiny}:meta", "ended:succeeded")
    assert None is tiny.poll()


def test_an_api_has_no_torch(fleet: Fleet) -> None:
    """`bar serve --redis-url` never loads it: the process is small and starts in a moment."""
    api, _ = fleet.api()
    loaded = Path(f"/proc/{api.pid}/maps")
    if not loaded.exists():
        pytest.skip("needs /proc, which tells what a process has loaded")
    assert "torch" not in loaded.read_text("utf-8")


async def test_processes_may_come_before_their_server(fleet: Fleet) -> None:
    """An API and a worker that start while the server is away work as soon as it is there."""
    fleet.server.kill()
    worker: Process = fleet.worker()
    _, url = fleet.api()
    async with client_of(url) as client:
        assert 503 == (await ask(client, 1)).status_code
        fleet.server.start()
        while (await ask(client, 1)).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert is_image(await ask(client, 2), 2)
    assert worker.poll() is None
