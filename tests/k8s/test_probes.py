"""The probes ask for paths that the API and the worker really answer."""

import httpx
import pytest
from starlette.types import ASGIApp

from service.server import bootstrap_api
from service.settings import Settings
from service.side_port import metrics_app, worker_app
from service.worker_health import WorkerHealth
from tests.k8s.manifests import OVERLAYS, Overlay, probes
from tests.service.fakes import fake_info

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("overlay", [Overlay(name) for name in OVERLAYS], ids=OVERLAYS),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


async def nothing() -> bytes:
    """Stand for metrics, and for a queue that answers."""
    return b""


async def status_of(app: ASGIApp, path: str) -> int:
    """Ask an application as a kubelet does."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        return (await client.get(path)).status_code


def ready_worker() -> WorkerHealth:
    """Return the health of a worker that takes jobs."""
    health = WorkerHealth(stall_s=30)
    health.enter("ready")
    return health


async def test_workers_answer_their_probes(overlay: Overlay) -> None:
    """Each path is answered with 200 by a worker that is ready."""
    (container,) = dict(overlay.our_pods())["bar-worker"]["containers"]
    app = worker_app(ready_worker(), nothing, nothing)
    for probe in probes(container).values():
        assert 200 == await status_of(app, probe["httpGet"]["path"])


async def test_apis_answer_their_probes(overlay: Overlay) -> None:
    """Without Redis an API has started and is alive; it only is not ready."""
    (container,) = dict(overlay.our_pods())["bar-api"]["containers"]
    settings = Settings.load({"redis_url": "redis://127.0.0.1:1/0"}, environ={})
    app = bootstrap_api(settings, [fake_info()]).api.app
    for name, probe in probes(container).items():
        expected = 503 if name == "readinessProbe" else 200
        assert expected == await status_of(app, probe["httpGet"]["path"])


async def test_a_loading_worker_is_not_taken_for_started(overlay: Overlay) -> None:
    """Only the start is waited for: a worker that still loads is alive, and not yet started."""
    (container,) = dict(overlay.our_pods())["bar-worker"]["containers"]
    app = worker_app(WorkerHealth(stall_s=30), nothing, nothing)
    statuses = {
        name: await status_of(app, probe["httpGet"]["path"])
        for name, probe in probes(container).items()
    }
    assert {"startupProbe": 503, "livenessProbe": 200, "readinessProbe": 503} == statuses


async def test_metrics_are_served_where_they_are_scraped(overlay: Overlay) -> None:
    """Monitors ask for a path that the port of metrics answers."""
    for monitor in overlay.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            assert 200 == await status_of(metrics_app(nothing), endpoint["path"])
    for monitor in overlay.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            app = worker_app(ready_worker(), nothing, nothing)
            assert 200 == await status_of(app, endpoint["path"])
