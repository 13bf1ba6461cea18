"""A run's checkpoint, or a model directory, as a model directory of its own: `bar export`.

A finished run has exported its best weights already, into its `model` folder. This is for the rest:
a run that is still going on, another checkpoint, half the size, other sampling defaults, a copy
without its encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from model import zoo
from model.checkpoint import load_model, save_model
from model.class_labels import ClassLabels
from model.config import SamplingConfig
from model.generator import Generator
from model.tokenizer import Tokenizer
from training.config_files import build_run
from training.errors import TrainingError
from training.generator_run import (
    class_labels,
    class_names,
    finished_generator,
    load_checked_tokenizer,
)
from training.model_card import card_files
from training.run_checkpoints import BEST, RunCheckpoints, read_checkpoint
from training.run_config import GeneratorRun
from training.run_folder import MODEL_FOLDER, RUN_FILE

STAGE_FOLDER = "generator"
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be exported, and how."""

    source: Path
    output: Path
    checkpoint: str = "best"  # or "latest", or a step
    precision: Precision = "float32"
    with_encoder: bool = True
    name: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # defaults that are changed


@dataclass(frozen=True)
class _Parts:
    name: str
    generator: Generator
    tokenizer: Tokenizer
    sampling: SamplingConfig
    labels: ClassLabels
    files: Mapping[str, bytes]
    source: str


def export(work: Export) -> zoo.ModelInfo:
    """Write the directory and return its description.

    Raises TrainingError for a run without such a checkpoint and for settings out of range,
    CheckpointError for a directory that is no model.
    """
    is_run = (work.source / STAGE_FOLDER).is_dir() and (work.source / RUN_FILE).is_file()
    parts = _from_run(work) if is_run else _from_model(work)
    try:
        sampling = replace(parts.sampling, **work.sampling)
        sampling.check_for(parts.generator.config)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    tokenizer = parts.tokenizer
    if not work.with_encoder:
        tokenizer = _decoder_only(tokenizer)
    return save_model(
        work.output,
        parts.generator,
        tokenizer,
        sampling,
        parts.labels,
        name=work.name or parts.name,
        dtype=getattr(torch, work.precision),
        extra_files=parts.files,
        source=parts.source,
    )


def _from_run(work: Export) -> _Parts:
    run = build_run(GeneratorRun, file=work.source / RUN_FILE)
    path, names = _checkpoint(work), class_names(run)
    state = read_checkpoint(path)
    weights = state.get("average", state["model"])
    return _Parts(
        run.name,
        finished_generator(run, names, weights, work.source),
        load_checked_tokenizer(run),
        run.sampling,
        class_labels(names),
        card_files(run, work.source / STAGE_FOLDER, names),
        f"step {state['step']} of a run of bar-serve on {run.data.path.name}",
    )


def _checkpoint(work: Export) -> Path:
    checkpoints = RunCheckpoints(work.source / STAGE_FOLDER / "checkpoints")
    there = sorted(path.name for path in checkpoints.folder.glob("*.pt"))
    if work.checkpoint == "best":
        path: Path | None = checkpoints.best
    elif work.checkpoint == "latest":
        path = checkpoints.latest()
    elif work.checkpoint.isdecimal():
        path = checkpoints.folder / f"step-{int(work.checkpoint):08}.pt"
    else:
        raise TrainingError(f"a checkpoint is best, latest or a step, got {work.checkpoint!r}")
    if path is None or not path.is_file():
        raise TrainingError(
            f"{work.source} has no checkpoint {work.checkpoint}: {', '.join(there) or 'none yet'}"
        )
    return path


def _from_model(work: Export) -> _Parts:
    folder = work.source / MODEL_FOLDER
    info = zoo.resolve(folder if folder.is_dir() else str(work.source))
    if work.checkpoint != BEST.removesuffix(".pt"):
        raise TrainingError(f"{work.source} is a model: it has no checkpoints to choose from")
    assert info.directory is not None
    keep_encoder = work.with_encoder and info.has_encoder
    generator, tokenizer = load_model(info, with_encoder=keep_encoder)
    weights = {zoo.CONFIG_FILE, zoo.GENERATOR_FILE, zoo.TOKENIZER_FILE, zoo.ENCODER_FILE}
    files = {
        path.name: path.read_bytes()
        for path in info.directory.iterdir()
        if path.is_file() and path.name not in weights
    }
    return _Parts(
        info.name,
        generator,
        tokenizer,
        info.sampling,
        info.class_labels,
        files,
        f"{info.name} {info.revision}",
    )


def _decoder_only(tokenizer: Tokenizer) -> Tokenizer:
    bare = Tokenizer(tokenizer.config, with_encoder=False)
    state = tokenizer.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    return bare.eval()
