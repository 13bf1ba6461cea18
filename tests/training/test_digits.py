"""The digits recipe from end to end, at a thousandth of its length."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import zoo
from model.checkpoint import load_model
from model.config import PRESETS
from training.digits import RECIPE, train_digits
from training.errors import TrainingError
from training.processes import OneProcess
from training.run_stage import Session

SHORT = RECIPE.scaled(0.001)


def session_in(folder: Path) -> Session:
    """Return a session that talks to nobody."""
    return Session(folder=folder, stream=io.StringIO(), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two and three steps."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train_digits(SHORT, session_in(folder))
    return folder


def test_run_ends_in_a_model_that_loads(run: Path) -> None:
    """The model directory has the preset's architecture, its defaults, names, and an encoder."""
    info = zoo.resolve(run / "model")
    preset = PRESETS["digits"]
    assert (preset.generator, preset.tokenizer) == (info.generator, info.tokenizer)
    assert preset.sampling == info.sampling
    assert "seven" == info.class_labels[7].name
    generator, tokenizer = load_model(info, with_encoder=True)
    assert tokenizer.encoder is not None
    assert generator.config == preset.generator


def test_run_leaves_curves_metrics_and_samples(run: Path) -> None:
    """Each stage has its metrics and a sample grid from step 0, and the run has its curves."""
    for stage in ("tokenizer", "generator"):
        assert (run / stage / "metrics.jsonl").stat().st_size
        assert (run / stage / "samples" / "step-00000000.png").is_file()
    assert (run / "curves.png").read_bytes() == (run / "model" / "curves.png").read_bytes()


def test_finished_run_is_not_trained_again(run: Path) -> None:
    """The same recipe in the same folder gives the same model at once."""
    before = zoo.resolve(run / "model").revision
    metrics = (run / "generator" / "metrics.jsonl").read_bytes()
    train_digits(SHORT, session_in(run))
    assert before == zoo.resolve(run / "model").revision
    assert metrics == (run / "generator" / "metrics.jsonl").read_bytes()


def test_folder_of_another_recipe_is_refused(run: Path, tmp_path: Path) -> None:
    """A folder is one recipe's; one that holds something else is nobody's."""
    with pytest.raises(TrainingError, match="holds a run of another recipe"):
        train_digits(RECIPE, session_in(run))
    (tmp_path / "thesis.txt").write_text("do not touch", "utf-8")
    with pytest.raises(TrainingError, match="not empty and no training run"):
        train_digits(SHORT, session_in(tmp_path))


def test_scaling_keeps_the_recipe_in_proportion() -> None:
    """A tenth of the run has a tenth of the steps, of the warm-up and of the annealing."""
    tenth = RECIPE.scaled(0.1)
    assert RECIPE.tokenizer.num_steps / 10 == tenth.tokenizer.num_steps
    assert RECIPE.generator.optimiser.warmup_steps / 10 == tenth.generator.optimiser.warmup_steps
    annealing, shorter = RECIPE.generator_loss.order_annealing, tenth.generator_loss.order_annealing
    assert (annealing.start / 10, annealing.end / 10) == (shorter.start, shorter.end)
    assert 1 == RECIPE.scaled(1e-9).generator.num_steps


def test_processes_that_would_do_the_same_are_refused(tmp_path: Path) -> None:
    """Under torchrun the digits are not trained: nothing is written."""

    class Two(OneProcess):
        count = 2

    session = replace(session_in(tmp_path / "run"), processes=Two())
    with pytest.raises(TrainingError, match="by one process, got 2"):
        train_digits(SHORT, session)
    assert not (tmp_path / "run").exists()
