"""`bar bench http`: load on a running service, and how it answers.

Closed loop: so many clients, each asking again when it has its image; the service sets the pace.
Open loop: requests arrive at a mean rate, at random (Poisson) times, whether or not earlier ones
are answered: the only way to see what waiting does, as a closed loop slows down with the service.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from service.commands.flags import positive_float, positive_int
from service.errors import StartupError

PROGRESS_S = 2.0  # between two lines of progress
TIMEOUT_S = 600.0


@dataclass
class Results:
    """What came back so far."""

    latencies_s: list[float] = field(default_factory=list)  # of images that arrived
    failures: dict[str, int] = field(default_factory=dict)  # by status or error

    def count_failure(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1

    @property
    def num_answered(self) -> int:
        return len(self.latencies_s) + sum(self.failures.values())


def main(argv: Sequence[str]) -> int:
    """Load a service and print a report; 1 if no request succeeded.

    Raises: StartupError says why the service cannot be reached.
    """
    options = _parser().parse_args(argv)
    report = asyncio.run(_measure(options))
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for name, value in report.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            sys.stdout.write(f"{name:24} {shown}\n")
    return 0 if report["succeeded"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar bench http", description="Load a running service, and report how it answers."
    )
    parser.add_argument(
        "--url",
        type=_address,
        default="http://127.0.0.1:8000",
        help="of the service (default: %(default)s)",
    )
    parser.add_argument(
        "--requests", type=positive_int, default=200, metavar="N", help="in all (default: 200)"
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=positive_int,
        default=16,
        metavar="N",
        help="clients, each of which asks again when it is answered (default: 16)",
    )
    load.add_argument(
        "--rate",
        type=positive_float,
        metavar="R",
        help="or: mean requests a second, at random times, answered or not",
    )
    parser.add_argument(
        "--goal-ms",
        type=positive_float,
        default=1000.0,
        metavar="MS",
        help="answers within it count as good (default: 1000)",
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds a key")
    parser.add_argument("--seed", type=int, default=0, help="of classes and arrivals (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is no number, or beyond 65535
        is_address = False
    if not is_address:
        raise argparse.ArgumentTypeError(f"must be an address like http://HOST:PORT, got {text!r}")
    return text


def _credentials(file: Path | None) -> dict[str, str]:
    """Return the header that shows the key in `file`: a flag would show it to all."""
    if file is None:
        return {}
    try:
        return {"authorization": f"Bearer {file.read_text('ascii').strip()}"}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no key"
        raise StartupError(f"--api-key-file {file}: {reason}") from None


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    rng, results = random.Random(options.seed), Results()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=options.url,
        timeout=TIMEOUT_S,
        limits=limits,
        headers=_credentials(options.api_key_file),
    ) as client:
        classes = await _num_classes(client)
        before = await _step_counters(client)

        async def ask(due: float) -> None:
            await _ask(client, rng.randrange(classes), due, results)

        started = time.perf_counter()
        progress = asyncio.create_task(_tell_progress(results, options.requests))
        if options.rate:
            await _open_loop(ask, options.requests, options.rate, rng)
        else:
            await _closed_loop(ask, options.requests, options.concurrency)
        elapsed_s = time.perf_counter() - started
        progress.cancel()
        after = await _step_counters(client)
    return _report(results, elapsed_s, options, before, after)


# Sends one request that was due at this time, on the clock of `time.perf_counter`.
Ask = Callable[[float], Awaitable[None]]


async def _closed_loop(ask: Ask, requests: int, clients: int) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await ask(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(clients)))


async def _open_loop(ask: Ask, requests: int, rate: float, rng: random.Random) -> None:
    arrival, asking = time.perf_counter(), []
    for _ in range(requests):
        arrival += rng.expovariate(rate)
        # Due times, not pauses: a late wake-up must not lower the rate.
        await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
        asking.append(asyncio.ensure_future(ask(arrival)))
    await asyncio.gather(*asking)


async def _ask(client: httpx.AsyncClient, class_id: int, due: float, results: Results) -> None:
    try:
        answer = await client.post(
            "/v1/generations", json={"class_id": class_id}, headers={"accept": "image/png"}
        )
    except httpx.HTTPError as error:
        results.count_failure(type(error).__name__)
        return
    if answer.is_success:
        results.latencies_s.append(time.perf_counter() - due)
    else:
        results.count_failure(str(answer.status_code))


async def _num_classes(client: httpx.AsyncClient) -> int:
    try:
        answer = await client.get("/v1/classes")
        if answer.status_code == 401:
            raise StartupError(f"{client.base_url} wants an API key: give --api-key-file")
        answer.raise_for_status()
        return len(answer.json()["data"])
    except httpx.HTTPError as error:
        raise StartupError(f"no service answers at {client.base_url}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise StartupError(f"what answers at {client.base_url} is not bar-serve") from None


async def _step_counters(client: httpx.AsyncClient) -> tuple[float, float]:
    """Read how many steps the service made and the sum of their fill, all models together.

    Zeros where the service shows no metrics.
    """
    totals = dict.fromkeys(("bar_batch_fill_ratio_count", "bar_batch_fill_ratio_sum"), 0.0)
    try:
        answer = await client.get("/metrics")
    except httpx.HTTPError:
        return 0.0, 0.0
    for line in answer.text.splitlines():
        name, _, value = line.replace("{", " {", 1).partition(" ")
        if name in totals:
            totals[name] += float(value.rsplit(" ", 1)[-1])
    steps, fill = totals.values()
    return steps, fill


async def _tell_progress(results: Results, requests: int) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        sys.stderr.write(f"{results.num_answered} of {requests} answered\n")


def _report(
    results: Results,
    elapsed_s: float,
    options: argparse.Namespace,
    before: tuple[float, float],
    after: tuple[float, float],
) -> dict[str, Any]:
    latencies = sorted(results.latencies_s)
    steps, fill = after[0] - before[0], after[1] - before[1]
    within = sum(1000 * latency <= options.goal_ms for latency in latencies)
    report: dict[str, Any] = {
        "loop": f"open, {options.rate:g}/s" if options.rate else f"closed, {options.concurrency}",
        "succeeded": len(latencies),
        "failed": sum(results.failures.values()),
        "failures": results.failures,
        "images_per_s": len(latencies) / elapsed_s,
        "goodput_per_s": within / elapsed_s,
        "goal_ms": options.goal_ms,
    }
    if latencies:
        report["mean_ms"] = 1000 * statistics.fmean(latencies)
    for percent in (50, 95, 99):
        if latencies:
            rank = min(len(latencies) - 1, len(latencies) * percent // 100)
            report[f"p{percent}_ms"] = 1000 * latencies[rank]
    if steps > 0:
        report["batch_fill"] = fill / steps
    return report
