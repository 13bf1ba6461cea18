"""`bar worker` as a process that tests can hurt: on a fake engine, or forked with torch loaded.

    python -m tests.service.worker_under_test --fake STEP_S -- WORKER FLAGS      one worker
    python -m tests.service.worker_under_test --zygote -- WORKER FLAGS           one for each line

A zygote has everything imported and starts a real worker for each line of its standard input, in a
fraction of the time that a fresh one needs; it prints the worker's process id. A job with the seed
POISON kills its worker. After SIGUSR1 a worker stops itself (SIGSTOP) when the next result is
computed and not yet stored: the moment at which only a fence helps. After SIGUSR2 the next step of
a fake engine hangs, until the next SIGUSR2.
"""

import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model.config import ImageRequest
from model.zoo import ModelInfo
from service import logs
from service.commands import worker
from service.commands.flags import find_model
from service.jobs import Claim, JobResult
from service.redis_work import RedisWorkQueue
from service.settings import Settings
from tests.service.fakes import FakeEngine, as_engine

if TYPE_CHECKING:
    from model.engine import Engine

POISON = 666_666_666


class PausingQueue(RedisWorkQueue):
    """Stops the process between computed and stored, when asked to."""

    is_asked = False

    async def complete(self, claim: Claim, result: JobResult) -> bool:
        if PausingQueue.is_asked:
            PausingQueue.is_asked = False
            os.kill(os.getpid(), signal.SIGSTOP)
        return await super().complete(claim, result)


def _ask_for_a_pause(*_: object) -> None:
    PausingQueue.is_asked = True


def stand_still(engine: FakeEngine) -> None:
    """Let the engine hang, or go on."""
    if engine.gate.is_set():
        engine.gate.clear()
    else:
        engine.gate.set()


def poisonable(engine: Any) -> "Engine":
    """Let the engine die of a poisoned image."""
    admit = engine.admit

    def checked(request: ImageRequest) -> int:
        if request.seed == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        slot: int = admit(request)
        return slot

    engine.admit = checked
    return engine  # type: ignore[no-any-return]


def run(flags: list[str], load: worker.Loader) -> int:
    """Run one worker process with what hurts it."""
    import service.worker_process

    vars(service.worker_process)["RedisWorkQueue"] = PausingQueue
    signal.signal(signal.SIGUSR1, _ask_for_a_pause)
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    settings = Settings.load(dict(zip(names, flags[1::2], strict=True)), environ={})
    logs.configure(settings.log_level, as_json=False)
    return worker.run(settings, load)


def load_real(info: ModelInfo, settings: Settings) -> "Engine":
    """Load the model, with one thread of torch."""
    from service.engine_loader import load_engine

    return poisonable(load_engine(info, settings))


def zygote(flags: list[str]) -> int:
    """Start a worker for each line of standard input; end with it."""
    import service.engine_loader  # noqa: F401 - loads torch, once

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0), os.dup2(null, 1)
            os._exit(run(flags, load_real))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    return 0


def main(argv: list[str]) -> int:
    """Be a worker or a zygote."""
    cut = argv.index("--")
    mode, flags = argv[:cut], argv[cut + 1 :]
    if mode[0] == "--zygote":
        return zygote(flags)
    # The model's directory has a known image, which a fake engine does not make.
    vars(worker)["find_model"] = lambda settings: replace(find_model(settings), directory=None)
    fake = FakeEngine(num_slots=4, step_s=float(mode[1]))
    signal.signal(signal.SIGUSR2, lambda *_: stand_still(fake))
    return run(flags, lambda *_: poisonable(as_engine(fake)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
