"""Processes of a whole installation on loopback, each of which can be replaced while it is used.

HAProxy stands in front and is told to send an API nothing more before that is stopped: what
preStop and readiness do in Kubernetes. Prometheus scrapes with the rules that are shipped.
"""

import asyncio
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.settings import environment_for
from tests.observability.rules import RULES
from tests.service.redis_server import RedisServer

PATIENCE_S = 120.0  # for a worker that starts on a machine with other things to do
SETTLE_S = 0.5  # that a proxy is given between the last request and the end


def needed(program: str, package: str) -> str:
    """Return the path of a program; the test is skipped where it is not installed."""
    if found := shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
        return found
    pytest.skip(f"needs {program}: apt-get install {package}")


def free_port() -> int:
    """Return a port of loopback that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Member:
    """A process that can be asked whether it is ready."""

    name: str
    command: Sequence[str]
    ready_url: str
    process: "subprocess.Popen[bytes] | None" = None


@dataclass
class Stack:
    """A whole installation; `fake_step_s` gives it workers that sleep instead of computing."""

    folder: Path
    cleanup: ExitStack
    num_apis: int = 2
    num_workers: int = 3
    fake_step_s: float | None = None
    members: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.redis = self.cleanup.enter_context(RedisServer(self.folder))
        self.proxy_port, self.prometheus_port = free_port(), free_port()
        self.api_ports = [free_port() for _ in range(self.num_apis)]
        self.metrics_ports = [free_port() for _ in range(self.num_apis)]
        self.worker_ports = [free_port() for _ in range(self.num_workers)]
        self._admin = self.folder / "haproxy.sock"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy_port}"

    @property
    def services(self) -> list[str]:
        """Names of the members that are ours: workers, then APIs."""
        return [name for name in self.members if name.startswith(("worker", "api"))]

    async def start(self) -> None:
        """Start everything; return when all of it is ready."""
        for number, port in enumerate(self.worker_ports):
            url = f"http://127.0.0.1:{port}/readyz"
            self._add(Member(f"worker{number}", self._worker(port), url))
        for number, (port, metrics) in enumerate(
            zip(self.api_ports, self.metrics_ports, strict=True)
        ):
            url = f"http://127.0.0.1:{port}/readyz"
            self._add(Member(f"api{number}", self._api(port, metrics), url))
        self._add(Member("haproxy", self._haproxy(), f"{self.url}/readyz"))
        self._add(
            Member(
                "prometheus",
                self._prometheus(),
                f"http://127.0.0.1:{self.prometheus_port}/-/ready",
            )
        )
        for member in self.members.values():
            self._launch(member)
        await asyncio.gather(*(self._ready(member) for member in self.members.values()))
        await asyncio.gather(*(self._sees_workers(port) for port in self.metrics_ports))

    async def _sees_workers(self, metrics_port: int) -> None:
        """Wait until an API knows of all workers: it looks once a second."""
        expected = f'bar_workers{{model_name="digits",phase="ready"}} {self.num_workers:.1f}'
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{metrics_port}", timeout=60
        ) as client:
            while expected not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.1)

    def _add(self, member: Member) -> None:
        self.members[member.name] = member

    def _worker(self, port: int) -> list[str]:
        module = ["service", "worker"]
        if self.fake_step_s is not None:
            step_s = str(self.fake_step_s)
            module = ["tests.service.worker_under_test", "--fake", step_s, "--"]
        return [
            sys.executable, "-m", *module, "--redis-url", self.redis.url,
            "--worker-port", str(port), "--threads", "1", "--log-level", "warning",
        ]  # fmt: skip

    def _api(self, port: int, metrics_port: int) -> list[str]:
        return [
            sys.executable, "-m", "service", "serve", "--redis-url", self.redis.url,
            "--port", str(port), "--metrics-port", str(metrics_port), "--log-level", "warning",
        ]  # fmt: skip

    def _haproxy(self) -> list[str]:
        servers = [
            f"  server api{number} 127.0.0.1:{port} check inter 500ms"
            for number, port in enumerate(self.api_ports)
        ]
        config = self.folder / "haproxy.cfg"
        lines = [
            "global",
            f"  stats socket {self._admin} mode 600 level admin",
            "defaults",
            "  mode http",
            "  timeout connect 2s",
            "  timeout check 5s",
            "  timeout client 630s",
            "  timeout server 630s",
            "frontend clients",
            f"  bind 127.0.0.1:{self.proxy_port}",
            "  default_backend apis",
            "backend apis",
            "  balance roundrobin",
            "  option httpchk GET /readyz",
            *servers,
        ]
        config.write_text("\n".join([*lines, ""]), "utf-8")
        return [needed("haproxy", "haproxy"), "-f", str(config)]

    def _prometheus(self) -> list[str]:
        def job(name: str, ports: Sequence[int]) -> dict[str, Any]:
            return {
                "job_name": name,
                "static_configs": [{"targets": [f"127.0.0.1:{p}" for p in ports]}],
            }

        config = self.folder / "prometheus.yml"
        scraped = [job("bar-api", self.metrics_ports), job("bar-worker", self.worker_ports)]
        settings = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config.write_text(
            yaml.safe_dump(
                {"global": settings, "rule_files": [str(RULES)], "scrape_configs": scraped}
            ),
            "utf-8",
        )
        return [
            needed("prometheus", "prometheus"), f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}", "--log.level=warn",
            f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
        ]  # fmt: skip

    def _launch(self, member: Member) -> None:
        log = self.cleanup.enter_context((self.folder / f"{member.name}.log").open("ab"))
        member.process = subprocess.Popen(
            member.command,
            stdout=log,
            stderr=log,
            env=environment_for({}) | {"OMP_NUM_THREADS": "1"},
        )
        self.cleanup.callback(_end, member.process)

    async def _ready(self, member: Member) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        async with httpx.AsyncClient(timeout=5) as client:
            while time.monotonic() < ends_at:
                assert member.process
                assert member.process.poll() is None, self.log(member.name)
                try:
                    if (await client.get(member.ready_url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)
        raise AssertionError(f"{member.name} is not ready: {self.log(member.name)}")

    def log(self, name: str) -> str:
        """Return what a member said last."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")[-2000:]

    async def replace(self, name: str) -> int:
        """Take a member off, stop it by SIGTERM, start it anew; return its exit status."""
        member = self.members[name]
        assert member.process
        is_api = name.startswith("api")
        if is_api:
            await self._tell_proxy(f"set server apis/{name} state drain")
            await asyncio.sleep(SETTLE_S)
        member.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(member.process.wait, PATIENCE_S)
        self._launch(member)
        await self._ready(member)
        if is_api:
            await self._tell_proxy(f"set server apis/{name} state ready")
            while f"apis,{name},UP" not in await self._states():  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.1)
        return status

    async def _states(self) -> list[str]:
        """Return what the proxy thinks of each API: backend, server, state."""
        table = await self._tell_proxy("show stat")
        rows = csv.reader(table.splitlines())
        return [",".join((row[0], row[1], row[17])) for row in rows if len(row) > 17]

    async def _tell_proxy(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._admin))
        writer.write(f"{command}\n".encode())
        answer = (await reader.read()).decode().strip()
        writer.close()
        await writer.wait_closed()
        return answer

    def redis_computed_s(self) -> float:
        """Return the processor's time that the thread of Redis has taken so far."""
        info: Any = self.redis.client.info("cpu")
        parts = "used_cpu_user_main_thread", "used_cpu_sys_main_thread"
        return sum(float(info[part]) for part in parts)

    async def query(self, expression: str) -> dict[str, float]:
        """Ask Prometheus; return values by their labels."""
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.get(
                f"http://127.0.0.1:{self.prometheus_port}/api/v1/query",
                params={"query": expression},
            )
        found = answer.json()["data"]["result"]
        return {json.dumps(one["metric"], sort_keys=True): float(one["value"][1]) for one in found}


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


async def bench(url: str, *flags: str) -> dict[str, Any]:
    """Run `bar bench http`; return its report."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "bench", "http", "--url", url, "--json", *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report: dict[str, Any] = json.loads(output)
    return report


async def generate(class_id: int, seed: int, count: int, folder: Path) -> dict[int, bytes]:
    """Run `bar generate`; return the files by their seeds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "generate", "--class", str(class_id), "--seed", str(seed),
        "--num-images", str(count), "--output", str(folder / "{seed}.png"), "--threads", "1",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0
    return await asyncio.to_thread(
        lambda: {n: (folder / f"{n}.png").read_bytes() for n in range(seed, seed + count)}
    )
