"""`bar serve`: one process that answers HTTP and runs the model, its queue in memory; or, with a
queue on a Redis server, the API alone.

A published model that is not on this machine is downloaded first, with a progress bar; weights that
are here load in the background, while the probes already answer.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from model.zoo import ModelInfo
from service import __version__, logs
from service.auth import check_exposure
from service.commands.flags import add_settings_flags, describe_models, find_model
from service.errors import EngineLost, StartupError
from service.keyring import Keyring
from service.server import bind, bootstrap, bootstrap_api, serve
from service.settings import Settings

if TYPE_CHECKING:
    from model.engine import Engine


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; 1 if the engine was lost, and a new process is needed.

    Raises: BarError and CheckpointError say in one line why the process cannot start.
    """
    parser = argparse.ArgumentParser(
        prog="bar serve",
        usage="bar serve [OPTIONS]",
        description="Serve a model over HTTP: with its engine in this process, or, with "
        "--redis-url, as the API of a queue whose images `bar worker` makes. Every flag may be set "
        "by the environment variable beside it, and wins over it.",
    )
    add_settings_flags(parser, (name for name in Settings.model_fields if name != "worker_port"))
    settings = Settings.load(vars(parser.parse_args(argv)))
    logs.configure(settings.log_level, as_json=settings.log_json)
    check_exposure(settings, Keyring.of(settings))
    with (
        sigterm_exits(),
        bind(settings.host, settings.port) as listener,
        bind_side_port(settings.host, settings.metrics_port, "metrics") as metrics,
    ):
        url = _url(settings.host, listener.getsockname()[1])
        if settings.redis_url is None:
            return _serve_alone(settings, listener, metrics, url)
        infos = describe_models(settings)
        _greet(infos, url)
        service = bootstrap_api(settings, infos)
        asyncio.run(
            serve(service, listener, lambda: _invite_to_queue(infos[0], url, settings), metrics)
        )
    return 0


def _serve_alone(
    settings: Settings, listener: socket.socket, metrics: socket.socket | None, url: str
) -> int:
    """Serve with the engine in this process."""
    if len(settings.model_names) > 1:
        raise StartupError(
            "one process serves one model; several need --redis-url and a worker for each"
        )
    info = find_model(settings)
    _greet([info], url)

    def load() -> "Engine":
        # Torch: in the engine's thread, while the server is up already.
        from service.engine_loader import load_engine  # noqa: PLC0415

        return load_engine(info, settings)

    service = bootstrap(settings, info, load)
    assert service.worker is not None
    status = 0
    try:
        asyncio.run(serve(service, listener, lambda: _invite(info, url, settings), metrics))
    except EngineLost:  # which the worker has logged
        status = 1
    if service.worker.thread.is_busy:
        # A load or a step cannot be interrupted and Python would wait for it, beyond any grace
        # time; nobody wants what it makes.
        logging.shutdown()
        os._exit(status)
    return status


def _greet(infos: Sequence[ModelInfo], url: str) -> None:
    served = ", ".join(f"{info.name} (revision {info.revision})" for info in infos)
    _say(f"bar-serve {__version__} · {served} · playground {url} · documentation {url}/docs")


@contextmanager
def bind_side_port(host: str, port: int | None, what: str) -> Iterator[socket.socket | None]:
    """Bind a port beside the main one, if there is to be one, and say which it is.

    Raises: StartupError says why that is not possible.
    """
    if port is None:
        yield None
        return
    with bind(host, port) as listener:
        _say(f"{what} at {_url(host, listener.getsockname()[1])}")
        yield listener


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """End with status 0 when SIGTERM comes before `serve` listens for it, also as process 1 of a
    container, which the kernel's default would leave running."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)  # noqa: S104 - where to reach it
    return f"http://{shown or (f'[{host}]' if ':' in host else host)}:{port}"


def _invite(info: ModelInfo, url: str, settings: Settings) -> None:
    _say(f"Ready. Try:\n{_example(info, url, settings)}")


def _invite_to_queue(info: ModelInfo, url: str, settings: Settings) -> None:
    _say(
        f"Listening; {url}/readyz tells whether the queue answers and a worker is there.\n"
        f"With `bar worker --redis-url … --model {info.name}`, try:\n"
        f"{_example(info, url, settings)}"
    )


def _example(info: ModelInfo, url: str, settings: Settings) -> str:
    label = info.class_labels[min(7, len(info.class_labels) - 1)]
    key = ' -H "authorization: Bearer $KEY"' if settings.has_keys else ""
    return (
        f"  curl {url}/v1/generations -H 'content-type: application/json'{key} \\\n"
        f"    -H 'accept: image/png' -d '{{\"class_id\": {label.index}}}' -o image.png"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # at once, also into a pipe
