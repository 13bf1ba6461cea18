"""Facts of `bar queue`: what an operator sees of a queue on a real server."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.commands.queue import main
from service.errors import GenerationFailed, QueueUnavailable, StartupError
from tests.service.queue_ends import POLICY, RESULT, Ends, close, job, redis_ends
from tests.service.redis_server import RedisServer

Capture = pytest.CaptureFixture[str]
DAY = 1753000000.0


def prepare(server: RedisServer, steps: Callable[[Ends], Awaitable[None]]) -> None:
    """Bring an empty queue to where a test begins."""

    async def run() -> None:
        ends = redis_ends(server.url)
        await steps(ends)
        await close(ends)

    server.flush()
    asyncio.run(run())


async def four_jobs(ends: Ends) -> None:
    """One has succeeded, one runs, one waits, and one is somebody else's."""
    for index, name in enumerate(["done", "running", "waiting"]):
        await ends.api.admit(job(name, num_images=index + 1, created_at=DAY + index))
        ends.clock.now += 0.5
    await ends.api.admit(job("other", owner="ann", metadata={"to": "Ünal"}))
    done, _ = await ends.work.claim(3)
    await ends.work.complete(done, RESULT)


async def one_dead(ends: Ends) -> None:
    """A job has lost all its workers."""
    await ends.api.admit(job("poison", timeout_s=6000))
    for _ in range(POLICY.max_crashes):
        await ends.work.claim(1)
        await ends.lose_worker()


def ask(server: RedisServer, capsys: Capture, *argv: str) -> list[dict[str, Any]]:
    """Return what `bar queue` prints for scripts."""
    assert 0 == main([*argv, "--redis-url", server.url])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def shown(server: RedisServer, capsys: Capture, *argv: str) -> str:
    """Return what `bar queue` prints for people."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True)
        assert 0 == main([*argv, "--redis-url", server.url])
    return capsys.readouterr().out


def test_an_owners_jobs_are_listed(redis_server: RedisServer, capsys: Capture) -> None:
    """The newest first, of one owner, of one state, as many as are asked for."""
    prepare(redis_server, four_jobs)
    rows = ask(redis_server, capsys, "list")
    assert [("waiting", "queued", 3), ("running", "running", 2), ("done", "succeeded", 1)] == [
        (row["id"], row["state"], row["images"]) for row in rows
    ]
    assert ["other"] == [row["id"] for row in ask(redis_server, capsys, "list", "--owner", "ann")]
    (row,) = ask(redis_server, capsys, "list", "--state", "running")
    assert ("running", DAY + 1, None) == (row["id"], row["created_at"], row["ended_at"])
    assert ["waiting"] == [row["id"] for row in ask(redis_server, capsys, "list", "--limit", "1")]
    assert [] == ask(redis_server, capsys, "list", "--state", "dead")


def test_people_see_a_table(redis_server: RedisServer, capsys: Capture) -> None:
    """A column for whatever is known of any job, times in UTC; `--json` is for scripts."""
    prepare(redis_server, four_jobs)
    heading, *rows = shown(redis_server, capsys, "list").splitlines()
    assert ["id", "state", "owner", "images", "progress", "queue_position"] == heading.split()[:6]
    assert "error" not in heading
    assert ["waiting", "queued", "anyone", "3", "0", "1"] == rows[0].split()[:6]
    assert "2025-07-20 08:26:42Z" in rows[0]
    assert 1 == len({row.index("anyone") for row in rows}), "columns are aligned"
    assert "" == shown(redis_server, capsys, "dead")
    line, *_ = shown(redis_server, capsys, "list", "--json").splitlines()
    assert "waiting" == json.loads(line)["id"]


def test_one_job_is_shown_whole(redis_server: RedisServer, capsys: Capture) -> None:
    """Ended or not: what was asked for, how it is, and how large its images are."""
    prepare(redis_server, four_jobs)
    (done,) = ask(redis_server, capsys, "show", "done")
    assert ("succeeded", [3, 4], 2.0) == (
        done["state"], done["bytes"], done["timings"]["generation_s"]
    )  # fmt: skip
    assert 0.5 == pytest.approx(done["ended_at"] - done["started_at"], abs=2.0)
    (other,) = ask(redis_server, capsys, "show", "other")
    assert ("queued", 2, None, {"to": "Ünal"}) == (
        other["state"], other["queue_position"], other["bytes"], other["job"]["metadata"]
    )  # fmt: skip
    assert '\n  "state": "succeeded",\n' in shown(redis_server, capsys, "show", "done")


def test_a_job_is_stopped(redis_server: RedisServer, capsys: Capture) -> None:
    """Once; then there is nothing to stop."""
    prepare(redis_server, four_jobs)
    assert [{"id": "waiting", "was": "queued"}] == ask(redis_server, capsys, "cancel", "waiting")
    (row,) = ask(redis_server, capsys, "show", "waiting")
    assert "cancelled" == row["state"]
    assert 1 == main(["cancel", "waiting", "--redis-url", redis_server.url])
    assert "nothing to cancel under the id waiting" in capsys.readouterr().err


def test_the_counts_are_shown(redis_server: RedisServer, capsys: Capture) -> None:
    """What waits, what runs, what ended."""
    prepare(redis_server, four_jobs)
    (stats,) = ask(redis_server, capsys, "stats")
    assert (2, 1, 4, 1) == (
        stats["jobs_waiting"], stats["jobs_running"], stats["images_waiting"],
        stats["num_ended"]["succeeded"],
    )  # fmt: skip


def test_a_dead_job_is_looked_at_and_tried_again(
    redis_server: RedisServer, capsys: Capture
) -> None:
    """It is listed until it lives again, under a new id, which a second retry repeats."""
    prepare(redis_server, one_dead)
    (letter,) = ask(redis_server, capsys, "dead")
    assert ("poison", POLICY.max_crashes, 1) == (letter["id"], letter["crashes"], letter["images"])
    (letter,) = ask(redis_server, capsys, "inspect", "poison")
    assert 10 == letter["job"]["num_steps"]
    (row,) = ask(redis_server, capsys, "show", "poison")
    assert ("dead", "every worker that ran it was lost") == (row["state"], row["error"])
    assert ["poison"] == [r["id"] for r in ask(redis_server, capsys, "list", "--state", "failed")]
    (retried,) = ask(redis_server, capsys, "retry", "poison")
    assert [retried] == ask(redis_server, capsys, "retry", "poison")
    (row,) = ask(redis_server, capsys, "show", retried["retried_as"])
    assert "queued" == row["state"]
    assert [] == ask(redis_server, capsys, "dead")


@pytest.mark.parametrize("action", ["show", "inspect", "retry", "cancel"])
def test_an_unknown_id_is_an_error(redis_server: RedisServer, capsys: Capture, action: str) -> None:
    """Nothing is printed for scripts, and the status is 1."""
    redis_server.flush()
    assert 1 == main([action, "nobody", "--redis-url", redis_server.url])
    out, err = capsys.readouterr()
    assert ("", f"bar queue: this queue has nothing to {action} under the id nobody\n") == (
        out,
        err,
    )


@pytest.mark.parametrize(
    "argv",
    [["list", "an-id"], ["show"], ["list", "--state", "lost"], ["list", "--limit", "0"], ["eat"]],
)
def test_wrong_usage_is_said(capsys: Capture, argv: list[str]) -> None:
    """Usage goes to standard error, with status 2."""
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--redis-url", "redis://127.0.0.1:1"])
    assert 2 == ended.value.code
    assert "usage: bar queue" in capsys.readouterr().err


def test_only_a_queue_on_a_server_can_be_looked_into() -> None:
    """A queue in memory is another process's; an absent server is said to be absent."""
    with pytest.raises(StartupError, match="--redis-url"):
        main(["stats"])
    with pytest.raises(QueueUnavailable, match="does not answer"):
        main(["list", "--redis-url", "redis://127.0.0.1:1/0"])


def test_a_damaged_job_is_said_to_be_damaged(redis_server: RedisServer, capsys: Capture) -> None:
    """What cannot be read is an error of one line, and the others are still listed."""
    prepare(redis_server, four_jobs)
    redis_server.client.hset("{bar:digits}:j:waiting", "payload", b"{}")
    assert ["running", "done"] == [row["id"] for row in ask(redis_server, capsys, "list")]
    with pytest.raises(GenerationFailed, match="damaged"):
        main(["show", "waiting", "--redis-url", redis_server.url])
