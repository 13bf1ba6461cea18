"""A worker's life from its start: weights are loaded, a known image is made, then jobs are run.

In the process of its API or in one of its own, the same. What surrounds an engine is made before
it, so that probes and metrics can tell of a worker that is still loading.
"""

from collections.abc import Callable
from contextlib import closing

from service.canary import Canary, CanaryKeeper
from service.engine_driver import EngineDriver
from service.jobs import WorkerStatus
from service.scheduler import Scheduler
from service.worker import Worker, WorkerParts


async def run_worker(parts: WorkerParts, on_ready: Callable[[], None]) -> None:
    """Load the model, make the known image, call `on_ready` once that is right, then run jobs until
    cancelled, or until those that are claimed when the worker is told to stop are done.

    Raises: what `load_engine` and the first image raise, StartupError for a reference image that
    cannot be one, and EngineLost.
    """
    queue, thread, health = parts.queue, parts.thread, parts.health
    with closing(thread):
        canary = Canary(parts.info)
        await queue.report(WorkerStatus(name=parts.name, phase="loading"))
        engine = await thread.call(parts.load_engine)
        health.enter("warming_up")
        await queue.report(WorkerStatus(name=parts.name, phase="warming_up"))
        driver = EngineDriver(engine)
        keeper = CanaryKeeper(
            canary, driver, thread,
            health=health, metrics=parts.metrics, interval_s=parts.canary_interval_s,
        )  # fmt: skip
        await keeper.check()
        status = WorkerStatus(
            name=parts.name,
            phase="warming_up",
            revision=parts.info.revision,
            num_slots=engine.num_slots,
            precision=engine.precision.name,
            is_batch_invariant=engine.batch_invariant,
        )
        scheduler = Scheduler(num_slots=engine.num_slots, target_step_s=parts.target_step_s)
        worker = Worker(
            parts, status=status, driver=driver, scheduler=scheduler, keeper=keeper,
            on_ready=on_ready,
        )  # fmt: skip
        parts.metrics.watch_engine(driver.description, driver.memory_bytes, worker.counters)
        await worker.run()
