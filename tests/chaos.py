"""A soak that kills everything: `python -m tests.chaos [--jobs 20000] [--seed N]`.

Real workers on the bundled model, a real API, a real server. Workers are killed and stopped between
computed and stored, the server is killed, two jobs kill whoever runs them. At the end no job is
lost, none ended twice, nobody but the two is dead, and nothing is left over. A random soak of kills
does not notice missing fencing; the pauses before storing do, and so do the seeded mutants.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.queue_policy import QueuePolicy
from service.redis_queue import RedisJobQueue
from tests.service.redis_server import RedisServer
from tests.service.worker_under_test import POISON

LEASE_S = 2.0
NUM_WORKERS = 3
NUM_CLIENTS = 48
TELL_S = 5.0  # between two lines of progress
NUM_WORKER_KILLS, NUM_SERVER_KILLS, NUM_PAUSES, NUM_POISONED = 20, 5, 5, 2
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass
class Workers:
    """Worker processes that are replaced when they die."""

    zygote: "subprocess.Popen[str]"
    pids: list[int] = field(default_factory=list)

    def fill(self) -> None:
        """Replace the dead."""
        self.pids = [pid for pid in self.pids if is_alive(pid)]
        assert self.zygote.stdin
        assert self.zygote.stdout
        while len(self.pids) < NUM_WORKERS:
            self.zygote.stdin.write("\n")
            self.zygote.stdin.flush()
            self.pids.append(int(self.zygote.stdout.readline()))

    def hurt(self, rng: random.Random, number: signal.Signals) -> int | None:
        """Send a signal to one of them; return which."""
        alive = [pid for pid in self.pids if is_alive(pid) and not is_stopped(pid)]
        if not alive:
            return None
        pid = rng.choice(alive)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid


def is_alive(pid: int) -> bool:
    """Say whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_stopped(pid: int) -> bool:
    """Say whether a process was stopped by a signal."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2].startswith("T")


class Soak:
    """One run, its random choices from one seed."""

    def __init__(self, num_jobs: int, seed: int, server: RedisServer, url: str) -> None:
        self.num_jobs, self.rng, self.server, self.url = num_jobs, random.Random(seed), server, url
        self.images: dict[tuple[int, int], bytes] = {}
        self.answers: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.num_done = 0

    async def run(self, workers: Workers) -> None:
        """Ask for every image twice, hurting whatever is there, until all is answered."""
        requests = [(n % 10, n // 20) for n in range(self.num_jobs)]
        self.rng.shuffle(requests)
        for n in range(NUM_POISONED):  # not among the last, which would wait for them alone
            requests.insert((n + 1) * self.num_jobs // 4, (0, POISON))
        pending = iter(requests)
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as client:

            async def ask_on() -> None:
                for class_id, seed in pending:
                    await self._ask(client, class_id, seed)
                    self.num_done += 1

            clients = [asyncio.create_task(ask_on()) for _ in range(NUM_CLIENTS)]
            hurting = asyncio.create_task(self._hurt(workers))
            await asyncio.gather(*clients)
            await hurting

    async def _ask(self, client: httpx.AsyncClient, class_id: int, seed: int) -> None:
        body = {"class_id": class_id, "seed": seed, "timeout_s": 280}
        while True:
            reply = await client.post("/v1/generations", json=body, headers={"accept": "image/png"})
            if reply.status_code not in (429, 503):
                break
            self.answers["come again"] += 1
            await asyncio.sleep(0.2)
        if seed == POISON:
            assert 500 == reply.status_code, reply.text
            self.answers["poisoned"] += 1
            return
        assert 200 == reply.status_code, (reply.text, self._dump(reply.text))
        first = self.images.setdefault((class_id, seed), reply.content)
        assert first == reply.content, "the same request gave another image"
        self.answers["images"] += 1

    def _dump(self, text: str) -> object:
        """Return what the server knows of the job that an error names."""
        found = re.search(r"gen_\w+", text)
        return found and self.server.client.hgetall("{bar:digits}:j:" + found[0])

    async def _hurt(self, workers: Workers) -> None:
        plan: list[Callable[[], None]] = [
            *[lambda: self._kill_worker(workers)] * NUM_WORKER_KILLS,
            *[self._kill_server] * NUM_SERVER_KILLS,
            *[lambda: self._pause_worker(workers)] * NUM_PAUSES,
        ]
        self.rng.shuffle(plan)
        total = len(plan)
        stopped: dict[int, float] = {}
        tell_at = 0.0
        while plan or stopped or self.num_done < self.num_jobs + NUM_POISONED:
            due = 1 + self.num_done * total // (0.9 * self.num_jobs)
            if plan and total - len(plan) < due:
                plan.pop()()
            self._wake(workers, stopped)
            workers.fill()
            if time.monotonic() >= tell_at:
                tell_at = time.monotonic() + TELL_S
                print(f"{self.num_done} done, {dict(self.deeds)}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.1)

    def _kill_worker(self, workers: Workers) -> None:
        if workers.hurt(self.rng, signal.SIGKILL):
            self.deeds["worker kills"] += 1

    def _pause_worker(self, workers: Workers) -> None:
        if workers.hurt(self.rng, signal.SIGUSR1):
            self.deeds["pauses asked for"] += 1

    def _kill_server(self) -> None:
        self.server.kill()
        time.sleep(self.rng.uniform(0.1, 1.0))  # clients and API wait outside this process
        self.server.start()
        self.deeds["server kills"] += 1

    def _wake(self, workers: Workers, stopped: dict[int, float]) -> None:
        for pid in workers.pids:
            if pid not in stopped and is_stopped(pid):
                stopped[pid] = time.monotonic() + LEASE_S + 1.5
        for pid, wakes_at in list(stopped.items()):
            if time.monotonic() >= wakes_at:
                del stopped[pid]
                self.deeds["pauses"] += 1
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


async def check(server: RedisServer, soak: Soak) -> dict[str, object]:
    """Look at what is left; raise AssertionError for what should not be."""
    await asyncio.sleep(LEASE_S + 1.5)
    policy = QueuePolicy(max_queued_cost=1)
    queue = RedisJobQueue(server.url, "digits", policy, name="check")
    stats = await queue.stats()
    letters = await queue.dead_letters()
    await queue.disconnect()
    assert (0, 0, 0) == (stats.jobs_waiting, stats.jobs_running, stats.cost_waiting), stats
    assert stats.num_accepted == sum(stats.num_ended.values()), stats
    assert soak.num_jobs == soak.answers["images"]
    dead = [letter.job.images[0].seed for letter in letters if letter.job]
    assert [POISON] * NUM_POISONED == dead, letters
    for key in server.client.scan_iter("{bar:digits}:*", count=1000):
        kind = key.decode().split(":")[2]
        is_kept = kind in {"meta", "dead", "workers"}
        assert is_kept or server.client.pttl(key) > 0, f"left over: {key!r}"
    ended = {str(state): n for state, n in stats.num_ended.items() if n}
    return {"ended": ended, "redelivered": stats.num_redelivered}


def start(command: list[str]) -> "subprocess.Popen[str]":
    """Start a process of this project that talks through pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=ENVIRONMENT,
    )  # fmt: skip


def run(num_jobs: int, seed: int) -> dict[str, object]:
    """Run a soak; return what happened."""
    started = time.monotonic()
    flags = ["--lease-s", str(LEASE_S), "--max-queued-steps", "1000000"]
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        api = start(["service", "serve", "--redis-url", server.url, "--port", "0", *flags])
        zygote = start(
            ["tests.service.worker_under_test", "--zygote", "--",
             "--redis-url", server.url, "--log-level", "error", "--num-slots", "8",
             "--threads", "1", *flags]
        )  # fmt: skip
        workers = Workers(zygote)
        try:
            assert api.stdout
            found = re.search(r"http://[\d.:]+", api.stdout.readline())
            assert found
            soak = Soak(num_jobs, seed, server, found[0])
            workers.fill()
            asyncio.run(soak.run(workers))
            report = asyncio.run(check(server, soak))
        finally:
            for process in (zygote, api):
                process.kill()
                process.communicate()
            for pid in workers.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    deeds, answers = dict(soak.deeds), dict(soak.answers)
    seconds = round(time.monotonic() - started, 1)
    return {"seed": seed, "seconds": seconds, "answers": answers, "deeds": deeds, **report}


def main() -> None:
    """Run a soak from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`
    print(run(options.jobs, options.seed))


if __name__ == "__main__":
    main()
