"""The dashboard and the alerts speak of metrics that the service really exports."""

import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.observability.rules import (
    dashboard,
    made_dashboard,
    metrics_in,
    panels,
    promtool,
    queries,
    rules,
)
from tests.service.fakes import FakeEngine
from tests.service.harness import running

# What this machine cannot export: there is no GPU, and its queue is in memory.
ELSEWHERE = {"bar_gpu_memory_bytes", "bar_redis_memory_bytes"}
PROMETHEUS_OWN = {"ALERTS", "up"}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


async def exported() -> set[str]:
    """Return the names of all samples of a service that has just made an image."""
    async with running(FakeEngine()) as harness:
        answer = await harness.generate(class_id=1, seed=1)
        assert answer.status_code == 200
        text = (await harness.client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


async def test_every_metric_is_exported() -> None:
    """Each metric in a panel or a rule is exported by a running service, or recorded by a rule."""
    known = await exported() | ELSEWHERE | PROMETHEUS_OWN
    known |= {rule["record"] for rule in rules() if "record" in rule}
    unknown = {
        (where, metric)
        for where, expression in [
            *queries(),
            *((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()),
        ]
        for metric in metrics_in(expression) - known
    }
    assert set() == unknown


def test_metrics_are_found_in_expressions() -> None:
    """What is looked for is found: metrics, and neither labels nor functions nor texts."""
    expression = 'sum by (model_name) (rate(bar_x_total{handler="bar_y"}[5m])) / up > bar:z:p99'
    assert {"bar_x_total", "up", "bar:z:p99"} == metrics_in(expression)


def test_the_dashboard_is_what_its_source_makes() -> None:
    """Nobody has edited the JSON by hand."""
    assert made_dashboard() == dashboard(), "run `python docker/grafana/make_dashboard.py`"


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """Each expression is valid PromQL once its variables are filled in."""
    records = [{"record": f"q{n}", "expr": expr} for n, (_, expr) in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": records}]}), "utf-8")
    done = subprocess.run(
        [promtool(), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(records)} rules found" in done.stdout


def test_panels_do_not_overlap() -> None:
    """Every panel has its own place within the 24 columns, and its own number."""
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert {1} == set(cells.values())
    assert max(x for x, _ in cells) < 24
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))


def test_panels_say_what_they_show() -> None:
    """Every graph has a title of its own within its heading, a unit, and named lines."""
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
