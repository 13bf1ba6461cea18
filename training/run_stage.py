"""What the two kinds of run do alike: a device, seeded weights, the trainer, the summary.

Called by `tokenizer_run.py`, `generator_run.py` and the finetuning of either.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from training.compilation import check_compiler
from training.errors import TrainingError
from training.memory_estimate import MemoryEstimate, available_bytes, gigabytes
from training.metrics_log import MetricsLog
from training.pictures import save_curves
from training.processes import Processes
from training.progress import Progress, format_duration
from training.randomness import derive_seed
from training.stage import Stage
from training.trainer import ALONE, METRICS_FILE, Trainer
from training.trainer_config import TrainerConfig

CURVES_FILE = "curves.png"


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where a run happens: its folder, the device, who listens, and who may stop it."""

    folder: Path
    stream: TextIO
    device: torch.device
    should_stop: Callable[[], bool] = lambda: False
    processes: Processes = ALONE

    @contextmanager
    def main_first(self) -> Iterator[bool]:
        """Say whether this process is the main one; the others wait until it has left."""
        if not self.processes.is_main:
            self.processes.wait()
        yield self.processes.is_main
        if self.processes.is_main:
            self.processes.wait()

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the GPU if there is one. Raises TrainingError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"there is no device {name!r} here: {reason}") from error
    return device


def check_room(
    session: Session, estimate: MemoryEstimate, training: TrainerConfig, *, keeps: bool = True
) -> None:
    """Say what memory a run will need, and warn if that is more than there is.

    Raises TrainingError if the disk has no room for its checkpoints, or there is no compiler for a
    run that needs one.
    """
    if training.compile:
        check_compiler(session.device.type)
    whole, estimate = estimate, estimate.on_each_of(session.processes.count, training)
    session.say(f"memory: about {estimate.text()}")
    there = available_bytes(session.device)
    if estimate.total > there:
        session.say(
            f"warning: {session.device} has {gigabytes(there)}; raise training.micro_batches (now "
            f"{training.micro_batches}) or lower training.batch_size (now {training.batch_size})"
        )
    checkpoints = (training.checkpoints_kept + 1) * whole.checkpoint + whole.saved
    needed = checkpoints + whole.weights
    free = shutil.disk_usage(_existing(session.folder)).free
    if keeps and free < needed:
        raise TrainingError(
            f"{session.folder} needs {gigabytes(needed)} for checkpoints, and its disk has "
            f"{gigabytes(free)}: choose another --output, or lower training.checkpoints_kept "
            f"(now {training.checkpoints_kept})"
        )


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw initial weights that belong to the run's seed, and leave torch's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights", name))
        yield


def fit(session: Session, stage: Stage, config: TrainerConfig, seed: int) -> nn.Module:
    """Train a stage in its own folder, say what it took, and return its model with the best weights.

    Raises what `Trainer.fit` raises.
    """
    trainer = Trainer(
        stage,
        config,
        session.folder / stage.name,
        partial(Progress, stage.name, num_steps=config.num_steps, stream=session.stream),
        seed=seed,
        should_stop=session.should_stop,
        processes=session.processes,
    )
    first_step = trainer.step
    model = trainer.fit()
    if session.processes.is_main:
        _say_what_it_took(session, stage, trainer, first_step)
    return model


def _say_what_it_took(session: Session, stage: Stage, trainer: Trainer, first_step: int) -> None:
    config = trainer.config
    rows = MetricsLog(session.folder / stage.name / METRICS_FILE).read()
    save_curves(session.folder / CURVES_FILE, {stage.name: rows})
    took_s = trainer.elapsed_s
    num_images = (config.num_steps - first_step) * config.batch_size
    rate = num_images / took_s if took_s else math.inf
    session.say(
        f"{stage.name}: {config.num_steps} steps"
        + (f" ({config.num_steps - first_step} of them now)" if first_step else "")
        + f" in {format_duration(took_s)}, {rate:.1f} images/s, {trainer.waited_s / took_s:.0%} "
        f"waiting for data; best held-out {stage.objective} {trainer.best:.4g}"
    )
