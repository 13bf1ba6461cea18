"""The loop of a training stage: step, measure, save, until done or asked to stop.

Drives `tokenizer_stage.py` and `generator_stage.py` alike. What a stage computes is the stage's
affair; here is what makes a run dependable: it goes on exactly where it stopped (data order and
random numbers are functions of the step, see `randomness.py`), it refuses to go on from numbers
that are not finite, and it keeps the weights that were best on held-out data.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from model.config import JsonConfig
from training.errors import TrainingDiverged, TrainingError, TrainingStopped
from training.metrics_log import MetricsLog
from training.optimiser import OptimiserConfig, build_optimiser
from training.progress import Progress
from training.randomness import batch_indices, derive_seed
from training.run_checkpoints import RunCheckpoints, read_checkpoint
from training.weight_average import WeightAverage

Metrics = dict[str, float]

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(JsonConfig):
    """How long and in what rhythm a stage is trained."""

    num_steps: int
    batch_size: int
    optimiser: OptimiserConfig
    average_decay: float | None  # of the weights' moving average; None keeps none
    validate_every: int
    checkpoint_every: int
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def scaled(self, share: float) -> Self:
        """Return a configuration of `share` of the steps, at least one, warm-up in proportion."""
        warmup_steps = round(self.optimiser.warmup_steps * share)
        return replace(
            self,
            num_steps=max(1, round(self.num_steps * share)),
            optimiser=replace(self.optimiser, warmup_steps=warmup_steps),
        )


class Stage(Protocol):
    """What the trainer trains: a model, its data and its loss."""

    name: str
    objective: str  # the held-out metric to minimise
    num_examples: int

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained."""

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, Metrics]:
        """Return the loss of the examples `batch`, int64 (B,), and what to show of it."""

    def validate(self, model: nn.Module) -> Metrics:
        """Measure `model`, in evaluation mode, on held-out data."""

    def draw(self, model: nn.Module, path: Path) -> None:
        """Write a picture of what `model` can do to `path`."""


class Trainer:
    """Trains one stage in a folder of its own, from its newest checkpoint if it has one."""

    def __init__(
        self,
        stage: Stage,
        config: TrainerConfig,
        folder: Path,
        progress: Callable[[int], Progress],
        *,
        seed: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stage, self.config, self.folder, self.seed = stage, config, folder, seed
        self.should_stop = should_stop
        self.optimiser = build_optimiser(stage.model, config.optimiser)
        decay = config.average_decay
        self.average = None if decay is None else WeightAverage(stage.model, decay)
        self.checkpoints = RunCheckpoints(folder / "checkpoints")
        self.log = MetricsLog(folder / METRICS_FILE)
        self.step = 0
        self.best = math.inf
        self._resume()
        self.progress = progress(self.step)
        self.started_s = time.monotonic()

    def fit(self) -> None:
        """Train to the last step and leave the best weights in the stage's model.

        Raises TrainingDiverged if loss or gradient are not finite, TrainingStopped after saving
        when `should_stop` says so.
        """
        with torch.random.fork_rng(devices=[]):
            if self.step == 0:
                self._validate()
            while self.step < self.config.num_steps:
                metrics = self._train_step()
                self._after_step(metrics)
        best = read_checkpoint(self.checkpoints.best)
        self.stage.model.load_state_dict(best["model"])
        self.stage.model.eval()

    def _train_step(self) -> Metrics:
        config, model = self.config, self.stage.model
        torch.manual_seed(derive_seed(self.seed, self.stage.name, self.step))
        batch = batch_indices(self.seed, self.step, self.stage.num_examples, config.batch_size)
        learning_rate = config.optimiser.learning_rate_at(self.step, config.num_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        model.train()
        loss, metrics = self.stage.loss(batch, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.max_grad_norm)
        self._check_finite(loss.item(), norm.item())
        self.optimiser.step()
        if self.average is not None:
            self.average.update(model)
        self.step += 1
        return {
            "loss": loss.item(),
            **metrics,
            "grad_norm": norm.item(),
            "learning_rate": learning_rate,
        }

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        kept = self.checkpoints.latest()
        raise TrainingDiverged(
            f"{self.stage.name} step {self.step}: loss {loss}, gradient norm {grad_norm}; the "
            f"weights were not changed by this step. Last checkpoint: {kept or 'none yet'}. Lower "
            f"the learning rate (now {self.config.optimiser.learning_rate:g}) or lengthen warm-up"
        )

    def _after_step(self, metrics: Metrics) -> None:
        config, is_last = self.config, self.step == self.config.num_steps
        if self.step % config.log_every == 0 or is_last:
            self._log("train", metrics)
        self.progress.show(self.step, {"loss": metrics["loss"]})
        if self.step % config.validate_every == 0 or is_last:
            self._validate()
        stopping = self.should_stop() and not is_last
        if self.step % config.checkpoint_every == 0 or is_last or stopping:
            self._save()
        if stopping:
            raise TrainingStopped(
                f"stopped at {self.stage.name} step {self.step} of {config.num_steps}, and saved: "
                "the same command goes on from there"
            )

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured and kept: the average where there is one."""
        return self.stage.model if self.average is None else self.average.module

    def _validate(self) -> None:
        model = self.evaluated.eval()
        torch.manual_seed(derive_seed(self.seed, self.stage.name, "held-out"))
        with torch.no_grad():
            metrics = self.stage.validate(model)
            path = self.folder / "samples" / f"step-{self.step:08}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stage.draw(model, path)
        self._log("held_out", metrics)
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.progress.note(f"{self.stage.name} step {self.step}, held out: {values}")
        if metrics[self.stage.objective] < self.best:
            self.best = metrics[self.stage.objective]
            self.checkpoints.save_best({"step": self.step, "model": model.state_dict()})

    def _log(self, split: str, metrics: Metrics) -> None:
        elapsed_s = round(time.monotonic() - self.started_s, 3)
        self.log.append({"step": self.step, "split": split, **metrics, "elapsed_s": elapsed_s})

    def _save(self) -> None:
        state: dict[str, Any] = {
            "settings": self._settings(),
            "step": self.step,
            "best": self.best,
            "model": self.stage.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
            state["num_averaged"] = self.average.num_updates
        self.checkpoints.save(self.step, state)

    def _resume(self) -> None:
        path = self.checkpoints.latest()
        if path is None:
            self.log.forget_after(-1)
            return
        state = read_checkpoint(path)
        if state["settings"] != self._settings():
            raise TrainingError(
                f"{path} was written with other settings, {state['settings']}, than this run's, "
                f"{self._settings()}: choose another folder, or delete it to start again"
            )
        self.step, self.best = state["step"], state["best"]
        self.stage.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
            self.average.num_updates = state["num_averaged"]
        self.log.forget_after(self.step)

    def _settings(self) -> str:
        return json.dumps({"seed": self.seed, **self.config.to_json()}, sort_keys=True)
