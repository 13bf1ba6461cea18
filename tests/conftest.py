"""What has to be settled before any test module is imported, and what the tests run against."""

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.errors import StartupError
from tests.service.redis_server import chosen_server

# Triton reads this when it is first imported, by whomever: without a GPU its kernels are
# interpreted. Torch cannot be asked for a GPU here, since it may be the one to import Triton.
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_report_header() -> str:
    """Say which Redis server and which redis-py the queue's tests run with."""
    try:
        program = chosen_server()
    except StartupError:
        server = "no server"
    else:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        server = f"{program} {said.stdout.partition(' sha')[0].partition('=')[2]}"
    return f"redis: {server}, redis-py {redis.__version__}"


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Take back what a command run in this process did to the logs: its handler writes to a
    standard error that is closed when its test ends, and it silences libraries."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {logger: logger.level for logger in (root, *_loggers())}
    yield
    for handler in set(root.handlers) - set(handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    for logger, level in levels.items():
        if logger.level != level:
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    """Return those that libraries and we have asked for; others are there as places in a name."""
    known = logging.getLogger().manager.loggerDict.values()
    return [logger for logger in known if isinstance(logger, logging.Logger)]
