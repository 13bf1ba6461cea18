"""Facts of the known image and of the memory on a GPU: the reference from a CPU holds there too."""

import pytest
import torch
from prometheus_client import CollectorRegistry

from model.zoo import resolve
from service.canary import Canary, CanaryKeeper
from service.engine_driver import EngineDriver, EngineThread
from service.engine_loader import load_engine
from service.settings import Settings
from service.worker_health import WorkerHealth
from service.worker_metrics import WorkerMetrics

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service runs on."""
    return "asyncio"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_bundled_models_reference_holds(dtype: str) -> None:
    """No bit of it is flipped by what a GPU rounds otherwise; it is repeated to the bit."""
    info, health = resolve("digits"), WorkerHealth(30.0)
    engine = load_engine(info, Settings.load({"device": "cuda", "dtype": dtype}, {}))
    thread = EngineThread()
    keeper = CanaryKeeper(
        Canary(info), EngineDriver(engine), thread, health=health, interval_s=60.0,
        metrics=WorkerMetrics(CollectorRegistry(), info.name, health),
    )  # fmt: skip
    for _ in range(3):
        await keeper.check()
        assert keeper.is_right
    thread.close()


def test_the_memory_of_the_device_adds_up() -> None:
    """Tensors lie in what this process keeps, which is part of what is not free."""
    engine = load_engine(resolve("digits"), Settings.load({"device": "cuda"}, {}))
    memory = engine.memory_bytes()
    assert 0 < memory["allocated"] <= memory["reserved"]
    assert memory["reserved"] <= memory["total"] - memory["free"]
