"""`bar queue`: what is in the queue on a Redis server, and what became of the jobs that died.

Everything is printed as JSON, one object a line, for people and for scripts.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from service.commands.flags import add_settings_flags, describe_models
from service.errors import StartupError
from service.jobs import DeadLetter, new_job_id
from service.redis_queue import RedisJobQueue
from service.server import make_policy
from service.settings import Settings

ACTIONS = {
    "stats": "counts, costs, workers",
    "dead": "the jobs that were given up, the newest first",
    "inspect": "one of them, with its payload",
    "retry": "admit one of them again, under a new id",
}


def main(argv: Sequence[str]) -> int:
    """Look into the queue; 1 if there is no such job.

    Raises: StartupError and ServiceError say in one line what is wrong.
    """
    parser = argparse.ArgumentParser(prog="bar queue", description="Look into the queue.")
    actions = ", ".join(f"{name}: {text}" for name, text in ACTIONS.items())
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=actions)
    parser.add_argument("id", nargs="?", help="of a dead job, to inspect or retry")
    parser.add_argument("--limit", type=int, default=100, help="most jobs to list (default: 100)")
    add_settings_flags(parser, ["redis_url", "model", "revision", "cache_dir"])
    options = vars(parser.parse_args(argv))
    action, job_id, limit = options.pop("action"), options.pop("id"), options.pop("limit")
    if (action in ("inspect", "retry")) != (job_id is not None):
        parser.error(f"{action} takes {'an' if job_id is None else 'no'} id")
    settings = Settings.load(options)
    if settings.redis_url is None:
        raise StartupError("a queue in memory cannot be looked into; give --redis-url")
    return asyncio.run(_run(settings, action, job_id, limit))


async def _run(settings: Settings, action: str, job_id: str | None, limit: int) -> int:
    async with _queue(settings) as queue:
        if action == "stats":
            _print(asdict(await queue.stats()))
        elif action == "dead":
            for letter in await queue.dead_letters(limit):
                _print(_summary(letter))
        elif action == "inspect":
            found = [
                letter
                for letter in await queue.dead_letters(queue.policy.max_dead)
                if letter.id == job_id
            ]
            for letter in found:
                _print({**_summary(letter), "job": letter.job and asdict(letter.job)})
            return 0 if found else _unknown(job_id)
        elif job_id is not None:
            new_id = await queue.retry_dead(job_id, new_job_id())
            if new_id is None:
                return _unknown(job_id)
            _print({"id": job_id, "retried_as": new_id})
    return 0


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


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "died_at": letter.died_at,
        "crashes": letter.crashes,
        "error": letter.error,
        "owner": letter.owner,
        "images": len(letter.job.images) if letter.job else None,
    }


def _unknown(job_id: str | None) -> int:
    sys.stderr.write(f"bar queue: {job_id} is no dead job of this queue\n")
    return 1


def _print(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
