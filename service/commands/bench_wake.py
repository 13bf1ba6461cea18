"""How soon a waiting client has the bytes of a result that a worker stores: for `bar bench queue`.

A real API in a process of its own; this process is the client that waits and the worker that
stores. Timed from the moment at which the worker hands the result to the queue until the last byte
of the answer is here: two scripts, a message, the API's reading, and HTTP.
"""

import asyncio
import json
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.zoo import BUNDLED_DIR, CONFIG_FILE
from service.errors import StartupError
from service.jobs import Claim, JobResult, WorkerStatus
from service.queue_keys import Keys
from service.redis_client import connect
from service.redis_work import RedisWorkQueue
from service.server import make_policy
from service.settings import Settings, environment_for

PAUSE_S = 0.01  # for the API to wait for the job before it ends
SEEN_S = 10.0  # in which an API sees a worker, once it listens
BODY = b'{"class_id": 0, "seed": 0}'
REQUEST = (
    b"POST /v1/generations HTTP/1.1\r\nHost: bench\r\nAccept: image/png\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


async def measure_wake(url: str, num_wakes: int, result: JobResult) -> dict[str, Any]:
    """Let a client wait for `num_wakes` results, one after the other; report how long they took.

    Raises: StartupError if the API does not start or refuses.
    """
    name = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="bar-bench-") as folder:
        _describe_model(Path(folder), name)
        with _api(url, folder) as port:
            policy = make_policy(Settings.load(environ={}))
            queue = RedisWorkQueue(url, name, policy, name="bench-worker")
            async with queue.running():
                await queue.report(WorkerStatus(name="bench", phase="ready", num_slots=1))
                waits = sorted(await _waits(port, queue, num_wakes, result))
    await remove_queue(url, name)
    shares = {p: waits[min(len(waits) * p // 100, len(waits) - 1)] for p in (50, 99)}
    return {"wakes": num_wakes, **{f"wake_p{p}_ms": 1e3 * wait for p, wait in shares.items()}}


async def remove_queue(url: str, name: str) -> None:
    """Leave nothing of a queue behind."""
    client = connect(url)
    async for key in client.scan_iter(f"{Keys(name).prefix}*", count=1000):
        await client.unlink(key)
    await client.aclose()


def _describe_model(folder: Path, name: str) -> None:
    """Make the bundled model another one: its jobs go to a queue that nobody else looks at."""
    bundled = BUNDLED_DIR / "digits"
    config = json.loads((bundled / CONFIG_FILE).read_text("utf-8"))
    for file in config["files"]:
        (folder / file).symlink_to(bundled / file)
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "name": name}), "utf-8")


@contextmanager
def _api(url: str, model: str) -> Iterator[int]:
    """Run an API in a process of its own; give the port that it listens on."""
    # The URL may hold a password: not on the command line, which others see.
    settings = {"redis_url": url, "model": model, "port": "0", "log_level": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve"], stdout=subprocess.PIPE, text=True,
        env=environment_for(settings),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        listening = re.search(r"http://[\d.]+:(\d+)", process.stdout.readline())
        if listening is None:
            raise StartupError("the API did not start; what it said stands above")
        process.stdout.readline()
        yield int(listening[1])
    finally:
        process.kill()
        process.communicate()


async def _waits(
    port: int, queue: RedisWorkQueue, num_wakes: int, result: JobResult
) -> list[float]:
    reader, writer = await _connect(port)
    await _until_served(reader, writer, queue, result)
    waits = []
    for _ in range(num_wakes):
        writer.write(REQUEST)
        answer = asyncio.create_task(_answer(reader))
        claim = await _claim(queue)
        await asyncio.sleep(PAUSE_S)
        started = time.perf_counter()
        storing = asyncio.create_task(queue.complete(claim, result))
        status, answered = await answer
        await storing
        if status != 200:
            raise StartupError(f"the API answered with status {status}")
        waits.append(answered - started)
    writer.close()
    return waits


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    ends_at = time.monotonic() + SEEN_S
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            if time.monotonic() > ends_at:
                raise StartupError("the API does not listen") from None
            await asyncio.sleep(0.02)


async def _until_served(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, queue: RedisWorkQueue,
    result: JobResult,
) -> None:  # fmt: skip
    """Ask until the API has seen that there is a worker, and everything is connected."""
    ends_at = time.monotonic() + SEEN_S
    serving = asyncio.create_task(_serve_one(queue, result))
    status = 0
    while status != 200:
        if time.monotonic() > ends_at:
            raise StartupError(f"the API answered with status {status}")
        writer.write(REQUEST)
        status, _ = await _answer(reader)
    await serving


async def _serve_one(queue: RedisWorkQueue, result: JobResult) -> None:
    await queue.complete(await _claim(queue), result)


async def _claim(queue: RedisWorkQueue) -> Claim:
    while True:
        await queue.wait_ready()
        for claim in await queue.claim(1):
            return claim


async def _answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    """Read an answer; return its status, and when all of it was here."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    await reader.readexactly(int(length[1]))
    return int(head.split(b" ", 2)[1]), time.perf_counter()
