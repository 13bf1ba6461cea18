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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.errors import TrainingDiverged, TrainingError, TrainingStopped
from training.metrics_log import MetricsLog
from training.mixed_precision import Precision, autocast
from training.optimiser import OptimiserConfig, build_optimiser
from training.prefetch import Examples, Prefetch
from training.processes import OneProcess, Processes
from training.progress import Progress
from training.randomness import batch_indices, derive_seed
from training.recomputation import recompute_blocks
from training.run_checkpoints import RunCheckpoints, read_checkpoint
from training.section import Section
from training.turns import Opponent
from training.weight_average import WeightAverage

Metrics = dict[str, float]

METRICS_FILE = "metrics.jsonl"
ALONE = OneProcess()


class TrainerConfig(Section):
    """How long and in what rhythm a stage is trained."""

    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimiser: OptimiserConfig
    average_decay: float | None = Field(gt=0, lt=1)  # of the moving average; None keeps none
    validate_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    log_every: int = Field(default=10, ge=1)
    checkpoints_kept: int = Field(default=2, ge=1)  # beside the best
    micro_batches: int = Field(default=1, ge=1)  # a step's batch in so many parts, for memory
    precision: Precision = "float32"
    recompute: bool = False  # what blocks compute inside, when gradients need it: less memory
    held_out_batch: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches must divide the batch of {self.batch_size}, got "
                f"{self.micro_batches}"
            )
        return self

    def scaled(self, share: float) -> Self:
        """Return a configuration of `share` of the steps, at least one, warm-up in proportion."""
        warmup_steps = round(self.optimiser.warmup_steps * share)
        return self.but(
            num_steps=max(1, round(self.num_steps * share)),
            optimiser=self.optimiser.but(warmup_steps=warmup_steps),
        )


class Stage(Protocol):
    """What the trainer trains: a model, its data and its loss."""

    name: str
    objective: str  # the held-out metric to minimise
    num_examples: int

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained."""

    def fetch(self, batch: Tensor, seed: int) -> Examples:
        """Read the examples `batch`, int64 (B,); what varies of them belongs to `seed`. Called
        from another thread."""

    def loss(self, examples: Examples, step: int) -> tuple[Tensor, Metrics]:
        """Return the loss of what `fetch` read, and what to show of it."""

    def validate(self, model: nn.Module) -> Metrics:
        """Measure `model`, in evaluation mode, on held-out data."""

    def draw(self, model: nn.Module, path: Path) -> None:
        """Write a picture of what `model` can do to `path`."""


class StageLoss(nn.Module):
    """A stage's loss as a module, whose gradients can be averaged over processes."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.model, self._stage = stage.model, stage
        opponent: Opponent | None = getattr(stage, "opponent", None)
        self.opponent = None if opponent is None else opponent.module

    def forward(self, examples: Examples, step: int) -> tuple[Tensor, Metrics]:
        return self._stage.loss(examples, step)


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
        processes: Processes = ALONE,
    ) -> None:
        self.stage, self.config, self.folder, self.seed = stage, config, folder, seed
        self.should_stop, self.processes = should_stop, processes
        self.num_parts = config.micro_batches * processes.count
        if config.batch_size % self.num_parts:
            raise TrainingError(
                f"a batch of {config.batch_size} cannot be shared by {processes.count} processes "
                f"in {config.micro_batches} parts each: choose a multiple of {self.num_parts}"
            )
        decay = config.average_decay
        self.average = None if decay is None else WeightAverage(stage.model, decay)
        if config.recompute:
            recompute_blocks(stage.model)
        self.optimiser = build_optimiser(stage.model, config.optimiser)
        self.opponent: Opponent | None = getattr(stage, "opponent", None)
        self.opponents_optimiser = (
            None if self.opponent is None else self.opponent.build_optimiser(config.optimiser)
        )
        self.checkpoints = RunCheckpoints(folder / "checkpoints", config.checkpoints_kept)
        self.log = MetricsLog(folder / METRICS_FILE)
        self.step = 0
        self.best = math.inf
        self._resume()
        self._joined = processes.joined(StageLoss(stage))
        self.progress = progress(self.step)
        self.started_s = time.monotonic()
        self.waited_s = 0.0  # for data

    def fit(self) -> None:
        """Train to the last step and leave the best weights in the stage's model.

        Raises TrainingDiverged if loss or gradient are not finite, TrainingStopped after saving
        when `should_stop` says so.
        """
        prefetch = Prefetch(self._fetch, self.config.num_steps)
        with torch.random.fork_rng(devices=[]), prefetch:
            if self.step == 0:
                self._validate()
            while self.step < self.config.num_steps:
                metrics = self._train_step(prefetch.take(self.step))
                self._after_step(metrics)
                self.waited_s = prefetch.waited_s
        self.processes.wait()
        best = read_checkpoint(self.checkpoints.best)
        self.stage.model.load_state_dict(best["model"])
        self.stage.model.eval()

    def _fetch(self, step: int) -> Examples:
        batch = batch_indices(self.seed, step, self.stage.num_examples, self.config.batch_size)
        mine = batch.chunk(self.processes.count)[self.processes.rank]
        return self.stage.fetch(mine, derive_seed(self.seed, "variety", step))

    def _train_step(self, examples: Examples) -> Metrics:
        config, model, optimiser = self.config, self.stage.model, self.optimiser
        model.train()
        optimiser.zero_grad(set_to_none=True)
        learning_rate = config.optimiser.learning_rate_at(self.step, config.num_steps)
        if self.opponent is not None and self.opponents_optimiser is not None:
            # Either side's loss leaves gradients on both; only those of whose turn it is are used.
            self.opponents_optimiser.zero_grad(set_to_none=True)
            if self.opponent.has_turn(self.step):
                model, optimiser = self.opponent.module, self.opponents_optimiser
                learning_rate = self.opponent.learning_rate_at(self.step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group["scale"]
        loss, metrics = self._accumulate(examples)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.max_grad_norm)
        self._check_finite(loss, norm.item())
        optimiser.step()
        if self.average is not None and optimiser is self.optimiser:
            self.average.update(model)
        self.step += 1
        return {
            "loss": loss,
            **metrics,
            "grad_norm": norm.item(),
            "learning_rate": learning_rate,
        }

    def _accumulate(self, examples: Examples) -> tuple[float, Metrics]:
        """Add up the gradients of the batch's parts, and return the means of what they say."""
        num_parts, means = self.config.micro_batches, dict[str, float]()
        first = num_parts * self.processes.rank
        parts = zip(*(tensor.chunk(num_parts) for tensor in examples), strict=True)
        for index, part in enumerate(parts, start=first):
            is_last = index == first + num_parts - 1
            purpose: list[str | int] = [self.stage.name, self.step, *([index] if index else [])]
            torch.manual_seed(derive_seed(self.seed, *purpose))
            held_back = nullcontext() if is_last else self.processes.held_back(self._joined)
            with held_back:
                with self._autocast():
                    loss, metrics = self._joined(part, self.step)
                (loss / num_parts).backward()
            for name, value in {"loss": loss.item(), **metrics}.items():
                means[name] = means.get(name, 0.0) + value / num_parts
        means = self.processes.mean(means)
        return means.pop("loss"), means

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(next(self.stage.model.parameters()).device.type, self.config.precision)

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
        is_opponents = self.opponent is not None and self.opponent.has_turn(self.step - 1)
        # Two steps in a row are logged: with an opponent they are one of either side.
        if self.step % config.log_every in (0, 1 if self.opponent else 0) or is_last:
            self._log("discriminator" if is_opponents else "train", metrics)
        self.progress.show(self.step, {"loss": metrics["loss"]})
        if self.step % config.validate_every == 0 or is_last:
            self._validate()
        stopping = self.processes.any(self.should_stop()) and not is_last
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
        if not self.processes.is_main:
            return
        model = self.evaluated.eval()
        torch.manual_seed(derive_seed(self.seed, self.stage.name, "held-out"))
        with torch.no_grad(), self._autocast():
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

    @property
    def elapsed_s(self) -> float:
        """How long this process has been at it."""
        return time.monotonic() - self.started_s

    def _log(self, split: str, metrics: Metrics) -> None:
        if not self.processes.is_main:
            return
        elapsed_s = round(self.elapsed_s, 3)
        self.log.append({"step": self.step, "split": split, **metrics, "elapsed_s": elapsed_s})

    def _save(self) -> None:
        if not self.processes.is_main:
            return
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
        if self.opponent is not None and self.opponents_optimiser is not None:
            state["opponent"] = self.opponent.module.state_dict()
            state["opponents_optimiser"] = self.opponents_optimiser.state_dict()
        self.checkpoints.save(self.step, state)

    def _resume(self) -> None:
        path = self.checkpoints.latest()
        if path is None:
            self._forget_after(-1)
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
        if self.opponent is not None and self.opponents_optimiser is not None:
            self.opponent.module.load_state_dict(state["opponent"])
            self.opponents_optimiser.load_state_dict(state["opponents_optimiser"])
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        if self.processes.is_main:
            self.log.forget_after(step)

    def _settings(self) -> str:
        return json.dumps({"seed": self.seed, **self.config.to_json()}, sort_keys=True)
