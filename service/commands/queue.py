"""`bar queue`: what is in the queue on a Redis server, and what became of the jobs that died.

On a terminal lists are tables and everything else is indented; for scripts, and with `--json`, each
job is one line of JSON. What is asked for is a verb of the queue, and nothing else is looked at.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from service.commands.flags import (
    ONE_MODEL,
    add_settings_flags,
    describe_models,
    positive_int,
)
from service.errors import StartupError
from service.jobs import ANYONE, DeadLetter, JobState, KnownJob, new_job_id
from service.redis_queue import RedisJobQueue
from service.server import make_policy
from service.settings import Settings

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the queue."""

    id: str
    owner: str
    state: JobState | None
    limit: int


@dataclass(frozen=True)
class Action:
    """One thing that `bar queue` does; it answers None if there is no such job."""

    text: str
    run: Callable[[RedisJobQueue, Question], Awaitable[Sequence[Row] | None]]
    takes_id: bool = False
    is_table: bool = False


def main(argv: Sequence[str]) -> int:
    """Look into the queue; 1 if there is no such job.

    Raises: StartupError and ServiceError say in one line what is wrong.
    """
    parser = _parser()
    options = vars(parser.parse_args(argv))
    name = options.pop("action")
    action, job_id, as_json = ACTIONS[name], options.pop("id"), options.pop("json")
    if action.takes_id != (job_id is not None):
        parser.error(f"{name} takes {'an' if action.takes_id else 'no'} id")
    question = Question(id=job_id or "", **{n: options.pop(n) for n in ("owner", "state", "limit")})
    settings = Settings.load(options)
    if settings.redis_url is None:
        raise StartupError("a queue in memory cannot be looked into; give --redis-url")
    rows = asyncio.run(_ask(settings, action, question))
    if rows is None:
        sys.stderr.write(f"bar queue: this queue has nothing to {name} under the id {job_id}\n")
        return 1
    _print(rows, is_table=action.is_table, as_json=as_json or not sys.stdout.isatty())
    return 0


def _parser() -> argparse.ArgumentParser:
    actions = "\n".join(
        f"  {f'{name} ID' if action.takes_id else name:<12}{action.text}"
        for name, action in ACTIONS.items()
    )
    parser = argparse.ArgumentParser(
        prog="bar queue",
        usage="bar queue ACTION [ID] --redis-url URL [OPTIONS]",
        description="Look into a model's queue on a Redis server; stop and retry its jobs.",
        epilog=f"actions:\n{actions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help="see below")
    parser.add_argument("id", nargs="?", metavar="ID", help="of a job")
    parser.add_argument(
        "--owner", default=ANYONE, help=f"whose jobs to list (default: {ANYONE}, who has no key)"
    )
    parser.add_argument(
        "--state", type=JobState, choices=list(JobState), metavar="STATE",
        help=f"list only these: {', '.join(JobState)}",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive_int, default=100, help="most jobs to list (default: 100)"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each job")
    add_settings_flags(
        parser,
        ["redis_url", "model", "revision", "cache_dir"],
        redis_url="Redis server of the queue; must be given",
        model=f"model whose queue it is: {ONE_MODEL}",
    )
    return parser


async def _ask(settings: Settings, action: Action, question: Question) -> Sequence[Row] | None:
    async with _queue(settings) as queue:
        return await action.run(queue, question)


@asynccontextmanager
async def _queue(settings: Settings) -> AsyncIterator[RedisJobQueue]:
    """Open the queue of the first model that the settings name."""
    assert settings.redis_url is not None
    name = describe_models(settings)[0].name
    queue = RedisJobQueue(settings.redis_url, name, make_policy(settings), name="bar-queue")
    try:
        yield queue
    finally:
        await queue.disconnect()


async def _stats(queue: RedisJobQueue, _: Question) -> list[Row]:
    return [asdict(await queue.stats())]


async def _list(queue: RedisJobQueue, question: Question) -> list[Row]:
    await queue.workers()  # which the time left is estimated from
    jobs = await queue.jobs_of(question.owner, state=question.state, limit=question.limit)
    return [_summary(known) for known in jobs]


async def _show(queue: RedisJobQueue, question: Question) -> list[Row] | None:
    await queue.workers()
    known = await queue.find(question.id)
    if known is None:
        return None
    result = known.view.outcome and known.view.outcome.result
    return [
        {
            **_summary(known),
            "timings": result and asdict(result.timings),
            "bytes": [len(image) for image in result.images] if result else None,
            "job": asdict(known.job),
        }
    ]


async def _cancel(queue: RedisJobQueue, question: Question) -> list[Row] | None:
    state = await queue.cancel(question.id)
    return [{"id": question.id, "was": state}] if state else None


async def _dead(queue: RedisJobQueue, question: Question) -> list[Row]:
    return [_epitaph(letter) for letter in await queue.dead_letters(question.limit)]


async def _inspect(queue: RedisJobQueue, question: Question) -> list[Row] | None:
    letters = await queue.dead_letters(queue.policy.max_dead)
    found = [letter for letter in letters if letter.id == question.id]
    return [{**_epitaph(x), "job": x.job and asdict(x.job)} for x in found] or None


async def _retry(queue: RedisJobQueue, question: Question) -> list[Row] | None:
    new_id = await queue.retry_dead(question.id, new_job_id())
    return [{"id": question.id, "retried_as": new_id}] if new_id else None


ACTIONS = {
    "stats": Action("counts, costs, workers", _stats),
    "list": Action("an owner's jobs, the newest first", _list, is_table=True),
    "show": Action("one job, waiting, running or ended", _show, takes_id=True),
    "cancel": Action("stop a job for good", _cancel, takes_id=True),
    "dead": Action("the jobs that were given up, the newest first", _dead, is_table=True),
    "inspect": Action("one of them, with its payload", _inspect, takes_id=True),
    "retry": Action("admit one of them again, under a new id", _retry, takes_id=True),
}


def _summary(known: KnownJob) -> dict[str, Any]:
    view = known.view
    return {
        "id": known.job.id,
        "state": view.state,
        "owner": known.job.owner,
        "images": len(known.job.images),
        "progress": view.share,
        "queue_position": view.queue_position,
        "eta_s": view.eta_s,
        "created_at": known.job.created_at,
        "started_at": known.started_at,
        "ended_at": known.ended_at,
        "error": view.outcome and view.outcome.error,
    }


def _epitaph(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "died_at": letter.died_at,
        "crashes": letter.crashes,
        "error": letter.error,
        "owner": letter.owner,
        "images": len(letter.job.images) if letter.job else None,
    }


def _print(rows: Sequence[Row], *, is_table: bool, as_json: bool) -> None:
    if is_table and not as_json:
        _print_table(rows)
        return
    for row in rows:
        sys.stdout.write(json.dumps(row, indent=None if as_json else 2) + "\n")


def _print_table(rows: Sequence[Row]) -> None:
    """Print what is known of any of the jobs, a column each."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    table = [names, *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table if rows else ():
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_at"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{value:.3g}" if isinstance(value, float) else str(value)
