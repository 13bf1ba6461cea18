"""Facts of `bar worker` as a command: what it refuses, what it prints, how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from model.config import ImageRequest
from model.zoo import resolve
from service.cli import main as bar
from service.jobs import Job, JobOutcome, JobState
from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from service.settings import API_SETTINGS, WORKER_SETTINGS
from tests.service.redis_server import RedisServer

URL = "redis://127.0.0.1:1/0"


@contextmanager
def working(model: Path, url: str, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a worker of the tiny model; the queue's URL comes as users should give it."""
    command = [sys.executable, "-m", "service", "worker", "--model", str(model),
               "--num-slots", "4", "--threads", "1", *flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BAR_REDIS_URL": url}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()


def read_line(process: "subprocess.Popen[str]") -> str:
    """Return the next line of its standard output."""
    assert process.stdout is not None
    return process.stdout.readline()


async def make(url: str, model: Path) -> JobOutcome:
    """Ask a queue for an image and wait for it."""
    info = resolve(model)
    queue = RedisJobQueue(url, info.name, QueuePolicy(max_queued_cost=1000), name="test")
    image = ImageRequest(class_id=1, seed=5, sampling=info.sampling)
    job = Job(
        id="j", images=(image,), num_steps=info.generator.num_tokens, output_format="png",
        timeout_s=30.0,
    )  # fmt: skip
    async with queue.running():
        await queue.admit(job)
        return await queue.wait("j")


def test_it_makes_images_until_it_is_told_to_stop(
    redis_server: RedisServer, tiny_model_dir: Path
) -> None:
    """One line when it is ready, the images of its queue, and status 0 after SIGTERM."""
    redis_server.flush()
    with working(tiny_model_dir, redis_server.url) as worker:
        assert read_line(worker).endswith("· tiny · ready\n")
        outcome = asyncio.run(make(redis_server.url, tiny_model_dir))
        worker.send_signal(signal.SIGTERM)
        assert 0 == worker.wait(timeout=60)
        assert "" == read_line(worker)
    assert JobState.SUCCEEDED is outcome.state
    assert outcome.result is not None
    with Image.open(BytesIO(outcome.result.images[0])) as image:
        assert (8, 8) == image.size


def test_it_ends_at_once_while_it_loads(redis_server: RedisServer, tiny_model_dir: Path) -> None:
    """SIGTERM before it is ready is no error either, and it does not stay in the list."""
    redis_server.flush()
    with working(tiny_model_dir, redis_server.url) as worker:
        while not redis_server.client.exists("{bar:tiny}:workers"):
            assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert 0 == worker.wait(timeout=60)
    assert not redis_server.client.exists("{bar:tiny}:workers")


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "a worker needs the queue that it works for: give --redis-url"),
    (["--redis-url", URL, "--model", "digits,bar-b"], "a worker serves one model, and --model "),
    (["--redis-url", URL, "--model", "digit"], "there is no model and no directory 'digit'"),
    (["--redis-url", URL, "--lease-s", "0.1"], "--lease-s: "),
])  # fmt: skip
def test_what_cannot_work_is_an_error_of_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, and what to do."""
    assert 1 == bar(["worker", *arguments])
    shown = capsys.readouterr()
    assert "" == shown.out
    assert 1 == shown.err.count("\n")
    assert f"bar worker: {message}" in shown.err


def test_help_lists_a_workers_settings_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    """What only an API listens to is no flag of a worker."""
    with pytest.raises(SystemExit) as stop:
        bar(["worker", "--help"])
    assert 0 == stop.value.code
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in WORKER_SETTINGS)
    assert all(f"--{name.replace('_', '-')} " not in shown for name in API_SETTINGS)


def test_a_flag_of_the_api_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2: a worker that silently ignored it would not do what was meant."""
    with pytest.raises(SystemExit) as stop:
        bar(["worker", "--redis-url", URL, "--max-images", "4"])
    assert 2 == stop.value.code
    assert "--max-images" in capsys.readouterr().err
