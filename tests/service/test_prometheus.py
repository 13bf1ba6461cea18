"""Facts that only Prometheus itself can confirm: it reads what is exported, and finds no fault.

apt install prometheus      brings both prometheus and promtool
"""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.fakes import NUM_STEPS, FakeEngine
from tests.service.harness import Harness, listening, running

pytestmark = pytest.mark.anyio

MISSING = "there is no {} on the PATH: apt install prometheus"
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: bar
    static_configs: [{{targets: ["{target}"]}}]
"""


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a server that scrapes `target`, and yield a client of it that is ready."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--log.level=error",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/-/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def query(client: httpx.AsyncClient, text: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of everything that a query finds."""
    reply = await client.get("/api/v1/query", params={"query": text})
    found: list[dict[str, Any]] = reply.json()["data"]["result"]
    return [(series["metric"], float(series["value"][1])) for series in found]


async def until(client: httpx.AsyncClient, text: str, value: float) -> dict[str, str]:
    """Return the labels of the only series of a query once it has `value`."""
    while not (found := await query(client, text)) or found[0][1] != value:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert 1 == len(found)
    return found[0][0]


async def work(h: Harness) -> None:
    """Make some of everything happen."""
    await h.generate({"accept": "text/event-stream"}, class_id=1, partial_images=1)
    await h.generate(class_id=2, num_images=2)
    await h.generate(class_id=99)


@pytest.mark.skipif(shutil.which("promtool") is None, reason=MISSING.format("promtool"))
async def test_promtool_finds_no_fault() -> None:
    """Names, types, units and help texts are as its linter wants them."""
    async with running(FakeEngine()) as h:
        await work(h)
        text = (await h.client.get("/metrics")).content
    command = ["promtool", "check", "metrics"]
    check = await asyncio.to_thread(
        subprocess.run, command, input=text, capture_output=True, check=False
    )
    ours = [line for line in check.stderr.decode().splitlines() if not line.startswith("python_")]
    assert [] == ours, check.stderr.decode()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason=MISSING.format("prometheus"))
async def test_prometheus_scrapes_what_happened(tmp_path: Path) -> None:
    """Counters, gauges and histograms arrive with their types and values."""
    async with listening(FakeEngine(num_slots=2)) as h:
        await work(h)
        target = str(h.client.base_url).removeprefix("http://")
        async with prometheus(tmp_path, target) as client:
            labels = await until(client, "bar_images_generated_total", 3)
            assert ("digits", "bar") == (labels["model_name"], labels["job"])
            await until(client, 'bar_rejections_total{reason="unknown_class"}', 1)
            await until(client, 'sum(bar_step_seconds_bucket{le="+Inf"})', 2 * NUM_STEPS)
            await until(client, "bar_jobs_waiting", 0)
            await until(client, 'bar_workers{phase="ready"}', 1)
            reply = await client.get("/api/v1/targets/metadata")
    kinds = {entry["metric"]: entry["type"] for entry in json.loads(reply.content)["data"]}
    assert ("counter", "gauge", "histogram") == tuple(
        kinds[name]
        for name in ("bar_images_generated_total", "bar_jobs_waiting", "bar_step_seconds")
    )
