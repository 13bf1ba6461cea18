"""Facts of what a process does beside its main business: it carries on, and it ends."""

import asyncio
import itertools

import pytest

from service.chores import Chores, each_interval, end_tasks
from service.errors import QueueUnavailable

pytestmark = pytest.mark.anyio


async def test_a_task_that_misses_a_cancellation_ends_all_the_same() -> None:
    """Whoever takes it for an error of the network, as libraries do, is asked again."""
    missed = 0

    async def listen() -> None:
        nonlocal missed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                missed += 1
                if missed == 3:
                    raise

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert (3, True) == (missed, task.cancelled())


async def test_what_ended_a_task_before_is_raised() -> None:
    """An error that nobody has seen is not lost when the process ends."""

    async def fail() -> None:
        raise ValueError("broken")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="broken"):
        await end_tasks(tasks)
    assert all(task.done() for task in tasks)


async def test_no_tasks_end_at_once() -> None:
    """Nothing to wait for is nothing to fail."""
    await end_tasks([])


async def test_an_interval_outlives_the_servers_absence() -> None:
    """What is done each second goes on while the server is away."""
    calls, enough = itertools.count(1), asyncio.Event()

    async def call() -> None:
        if next(calls) == 3:
            enough.set()
        raise QueueUnavailable("away")

    task = asyncio.create_task(each_interval(0.001, call))
    await asyncio.wait_for(enough.wait(), 10)
    assert not task.done()
    await end_tasks([task])


async def test_chores_are_waited_for_and_their_server_may_be_away() -> None:
    """What nobody waits for is done before the process ends; that it could not be is no error."""
    done, chores = [], Chores()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.append(1)

    async def fail() -> None:
        raise QueueUnavailable("away")

    chores.add(work())
    chores.add(fail())
    await chores.end()
    assert [1] == done
