"""`bar worker`: one engine that makes the images of a queue on a Redis server."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.zoo import ModelInfo
from service import __version__, logs
from service.commands.flags import ONE_MODEL, add_settings_flags, find_model
from service.commands.serve import bind_side_port, sigterm_exits
from service.errors import EngineLost, StartupError
from service.server import make_policy
from service.settings import WORKER_SETTINGS, Settings
from service.worker_process import WorkerProcess

if TYPE_CHECKING:
    from model.engine import Engine

Loader = Callable[[ModelInfo, Settings], "Engine"]


def main(argv: Sequence[str]) -> int:
    """Work until SIGTERM or SIGINT; 1 if the engine was lost, and a new process is needed.

    Raises: BarError and CheckpointError say in one line why the process cannot start.
    """
    parser = argparse.ArgumentParser(
        prog="bar worker",
        usage="bar worker --redis-url URL [OPTIONS]",
        description="Make the images that the APIs of a queue (`bar serve --redis-url`) are asked "
        "for; one worker for each device. Every flag may be set by the environment variable beside "
        "it, and wins over it.",
    )
    add_settings_flags(
        parser,
        WORKER_SETTINGS,
        host="address for its probes and metrics",
        model=f"model whose images it makes: {ONE_MODEL}",
        redis_url="Redis server of the queue; a worker needs one",
    )
    settings = Settings.load(vars(parser.parse_args(argv)))
    logs.configure(settings.log_level, as_json=settings.log_json)
    return run(settings, _load_engine)


def run(settings: Settings, load_engine: Loader) -> int:
    """Run a worker process of the model that `settings` names; return its exit status."""
    if settings.redis_url is None:
        raise StartupError("a worker needs the queue that it works for: give --redis-url")
    if len(settings.model_names) > 1:
        raise StartupError(f"a worker serves one model, and --model names {settings.model_names}")
    with (
        sigterm_exits(),
        bind_side_port(settings.host, settings.worker_port, "probes and metrics") as listener,
    ):
        info = find_model(settings)
        process = WorkerProcess.make(
            settings, info, make_policy(settings), lambda: load_engine(info, settings)
        )
        status = 0
        try:
            asyncio.run(process.run(lambda: _say(_ready(info)), listener))
        except EngineLost:  # which the worker has logged
            status = 1
    if process.thread.is_busy:
        # A load or a step cannot be interrupted, and nobody wants what it makes.
        logging.shutdown()
        os._exit(status)
    return status


def _load_engine(info: ModelInfo, settings: Settings) -> "Engine":
    # Torch: in the engine's thread.
    from service.engine_loader import load_engine  # noqa: PLC0415

    return load_engine(info, settings)


def _ready(info: ModelInfo) -> str:
    return f"bar-serve {__version__} · {info.name} · ready"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # at once, also into a pipe
