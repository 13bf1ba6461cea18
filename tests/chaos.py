"""A soak that kills everything: `python -m tests.chaos [--jobs 20000] [--seed N]`.

Real workers on the bundled model, a real API, a real server. Workers are killed, and are stopped
between computed and stored; the server is killed; some jobs kill whoever runs them. At the end no
job is lost, none ended twice, nobody but the killers is dead, and nothing is left over. A random
soak of kills does not notice missing fencing; the pauses before storing do, and so do the seeded
mutants.
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
from collections.abc import Collection
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
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


SCALED = ("worker_kills", "server_kills", "pauses", "killers")


@dataclass(frozen=True)
class Plan:
    """What happens in one run; its random choices come from the seed."""

    seed: int
    jobs: int = 1000
    worker_kills: int = 20
    server_kills: int = 5
    pauses: int = 5
    killers: int = 2

    @property
    def deeds(self) -> dict[str, int]:
        """How often what is done to processes."""
        return {name: getattr(self, name) for name in SCALED if name != "killers"}


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

    def hurt(
        self, rng: random.Random, number: signal.Signals, sparing: Collection[int] = ()
    ) -> int | None:
        """Send a signal to one of those that run; return which, None if there is none."""
        running = [pid for pid in self.pids if is_alive(pid) and not is_stopped(pid)]
        if not (chosen := [pid for pid in running if pid not in sparing]):
            return None
        pid = rng.choice(chosen)
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
    """One run."""

    def __init__(self, plan: Plan, server: RedisServer, workers: Workers, url: str) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.server, self.workers, self.url = server, workers, url
        self.images: dict[tuple[int, int], bytes] = {}
        self.answers: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.asked: set[int] = set()  # workers that stop themselves before they store a result
        self.stopped: dict[int, float] = {}  # those that did, and when they go on
        self.num_done = 0

    async def run(self) -> None:
        """Ask for every image twice, hurting whatever is there, until all is answered."""
        jobs, killers = self.plan.jobs, self.plan.killers
        requests = [(n % 10, n // 20) for n in range(jobs)]
        self.rng.shuffle(requests)
        for n in range(killers):  # not among the last, which would wait for them alone
            requests.insert((n + 1) * jobs // (killers + 2), (0, POISON))
        pending = iter(requests)
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as client:

            async def ask_on() -> None:
                for class_id, seed in pending:
                    await self._ask(client, class_id, seed)
                    self.num_done += 1

            clients = [asyncio.create_task(ask_on()) for _ in range(NUM_CLIENTS)]
            hurting = asyncio.create_task(self._hurt())
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

    async def _hurt(self) -> None:
        """Do all deeds, spread over the first three fifths of the jobs: the last take time too."""
        plan = [name for name, count in self.plan.deeds.items() for _ in range(count)]
        self.rng.shuffle(plan)
        hurt = {
            "worker_kills": self._kill_worker,
            "server_kills": self._kill_server,
            "pauses": self._pause_worker,
        }
        num_jobs, total, tell_at = self.plan.jobs + self.plan.killers, len(plan), 0.0
        while plan or self.asked or self.stopped or self.num_done < num_jobs:
            due = 1 + self.num_done * total // (0.6 * num_jobs)
            if plan and total - len(plan) < due and hurt[plan[-1]]():
                plan.pop()
            plan += self._wake()
            self.workers.fill()
            if time.monotonic() >= tell_at:
                tell_at = time.monotonic() + TELL_S
                print(f"{self.num_done} done, {dict(self.deeds)}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.1)
            if self.num_done == num_jobs:
                self.asked.clear()  # nobody has a result left to stop before

    def _kill_worker(self) -> bool:
        pid = self.workers.hurt(self.rng, signal.SIGKILL)
        self.deeds["worker_kills"] += pid is not None
        return pid is not None

    def _pause_worker(self) -> bool:
        pid = self.workers.hurt(self.rng, signal.SIGUSR1, sparing=self.asked)
        if pid is not None:
            self.asked.add(pid)
        return pid is not None

    def _kill_server(self) -> bool:
        self.server.kill()
        time.sleep(self.rng.uniform(0.1, 1.0))  # clients and API wait outside this process
        self.server.start()
        self.deeds["server_kills"] += 1
        return True

    def _wake(self) -> list[str]:
        """Let workers that slept past their lease go on; return what has to be done once more,
        because who was asked to stop has died of something else."""
        stopped = {pid for pid in self.asked if is_stopped(pid)}
        self.stopped |= dict.fromkeys(stopped, time.monotonic() + LEASE_S + 1.5)
        self.asked -= stopped
        died = {pid for pid in self.asked | self.stopped.keys() if not is_alive(pid)}
        for pid in [pid for pid, at in self.stopped.items() if time.monotonic() >= at]:
            if pid not in died:
                os.kill(pid, signal.SIGCONT)
                self.deeds["pauses"] += 1
                del self.stopped[pid]
        self.asked -= died
        self.stopped = {pid: at for pid, at in self.stopped.items() if pid not in died}
        return ["pauses"] * len(died)


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
    assert soak.plan.jobs == soak.answers["images"]
    dead = [letter.job.images[0].seed for letter in letters if letter.job]
    assert [POISON] * soak.plan.killers == dead, letters
    for key in server.client.scan_iter("{bar:digits}:*", count=1000):
        kind = key.decode().split(":")[2]
        is_kept = kind in {"meta", "dead", "kept", "workers"}
        # -2: it went between the two looks, as its time was up.
        assert is_kept or server.client.pttl(key) != -1, f"left over: {key!r}"
    ended = {str(state): n for state, n in stats.num_ended.items() if n}
    return {"ended": ended, "redelivered": stats.num_redelivered}


def start(command: list[str]) -> "subprocess.Popen[str]":
    """Start a process of this project that talks through pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=ENVIRONMENT,
    )  # fmt: skip


def run(plan: Plan) -> dict[str, object]:
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
            soak = Soak(plan, server, workers, found[0])
            workers.fill()
            asyncio.run(soak.run())
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
    return {"seed": plan.seed, "seconds": seconds, "answers": answers, "deeds": deeds, **report}


def main() -> None:
    """Run a soak from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--jobs", type=int, default=1000)
    for name in SCALED:
        text = f"(default: {getattr(Plan, name)} for every 1,000 jobs)"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    scaled = {name: max(1, getattr(Plan, name) * given["jobs"] // 1000) for name in SCALED}
    plan = Plan(**{**scaled, **given})
    print(plan, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`
    print(run(plan))


if __name__ == "__main__":
    main()
