"""Facts of intake: what is let in, and what was let in before."""

from dataclasses import replace
from typing import Any

import pytest

from service.caller import Caller
from service.errors import IdempotencyMismatch, NotReady
from service.intake import Intake
from service.jobs import Job, WorkerPhase, WorkerStatus
from service.memory_queue import MemoryJobQueue
from service.metrics import Metrics
from service.queue_policy import QueuePolicy
from service.schemas import GenerationRequest
from service.served_models import ServedModel, ServedModels
from service.settings import Settings
from service.submission import Asking
from tests.service.fakes import fake_info

pytestmark = pytest.mark.anyio

MINE = "order-2026-0001"


class Door:
    """The intake of two models, each with a worker that is ready."""

    def __init__(self) -> None:
        infos = [replace(fake_info(), name=name) for name in ("a", "b")]
        self.models = [
            ServedModel(info, MemoryJobQueue(QueuePolicy(max_queued_cost=1000))) for info in infos
        ]
        metrics = Metrics({info.name: "" for info in infos})
        self._intake = Intake(Settings.load({}, {}), ServedModels(self.models), metrics)

    async def workers_are(self, phase: WorkerPhase, steps_left: int = 0) -> None:
        """Let each model's only worker say how it is."""
        status = WorkerStatus(name="w", phase=phase, num_slots=1, step_s=1.0, steps_left=steps_left)
        for served in self.models:
            await served.queue.report(status)  # type: ignore[attr-defined]

    async def put(self, number: int = 0, **body: Any) -> Job:
        """Ask the model of that number for images under `MINE`."""
        return await self.ask(number, Asking(job_id=MINE), **body)

    async def ask(self, number: int, asking: Asking, **body: Any) -> Job:
        """Ask the model of that number for images."""
        request = GenerationRequest.model_validate({"class_id": 1, **body})
        return await self._intake.submit(self.models[number], request, asking)


async def test_to_attach_takes_neither_a_worker_nor_time() -> None:
    """What was accepted under an id is found under it when nothing new would be accepted."""
    door = Door()
    await door.workers_are("ready")
    made = await door.put(timeout_s=60)
    await door.workers_are("ready", steps_left=1000)
    assert made == await door.put(timeout_s=60)
    await door.workers_are("unfit")
    assert made == await door.put(timeout_s=60)
    with pytest.raises(NotReady):
        await Door().put()


async def test_an_id_stands_for_one_model() -> None:
    """Another model's request under an id is another request, although its queue is another."""
    door = Door()
    await door.workers_are("ready")
    await door.put(0)
    with pytest.raises(IdempotencyMismatch):
        await door.put(1)
    assert await door.models[1].queue.state(MINE) is None


async def test_an_idempotency_key_stands_for_one_model() -> None:
    """It is the same as with an id, for its owner; another's key is another key."""
    door, key = Door(), "order-1"
    await door.workers_are("ready")
    made = await door.ask(0, Asking(idempotency_key=key))
    assert made == await door.ask(0, Asking(idempotency_key=key))
    with pytest.raises(IdempotencyMismatch, match="the idempotency key"):
        await door.ask(1, Asking(idempotency_key=key))
    assert 0 == (await door.models[1].queue.stats()).num_accepted
    await door.ask(1, Asking(idempotency_key=key, caller=Caller(owner="somebody else")))
