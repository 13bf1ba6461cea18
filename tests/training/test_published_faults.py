"""What is broken in the published training is not broken here.

docs/training.md lists the faults; each has a test, here or beside the code that it is about.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import CheckpointError
from tests.model.tiny import tiny_tokenizer
from tests.training.test_trainer import rows
from tests.training.tiny_runs import (
    NUM_STEPS,
    generator_stage,
    make_trainer,
    tokenizer_stage,
    trainer_config,
)
from training import generator_stage as generator_stage_module
from training.processes import OneProcess
from training.randomness import batch_indices
from training.run_checkpoints import RunCheckpoints
from training.tokenizer_files import load_tokenizer, save_tokenizer
from training.tokenizer_loss import TokenizerLossWeights
from training.tokenizer_stage import TokenizerStage
from training.turns import DiscriminatorConfig, Opponent

TESTS = Path(__file__).parent
DOCUMENT = (TESTS.parents[1] / "docs" / "training.md").read_text("utf-8")
FAULTS = re.findall(r"^\| (.+?) \| .+ \| `(test_\w+)` \|$", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize(("fault", "name"), FAULTS)
def test_every_fault_has_its_test(fault: str, name: str) -> None:
    """The test that a line names is there."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted(TESTS.glob("test_*.py"))]
    names = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in names, fault


def test_the_table_of_faults_is_whole() -> None:
    """All twelve are told, each once."""
    wanted = {
        "average's decay", "prefix", "gradient norm", "encoder's", "own steps", "every part",
        "order of the data", "before the new one", "one checkpoint", "ImageNet's", "every process",
        "read again",
    }  # fmt: skip
    assert len(wanted) == len(FAULTS) == DOCUMENT.count("| `test_")
    told = " ".join(fault for fault, _ in FAULTS)
    assert set() == {words for words in wanted if words not in told}


def test_average_keeps_its_decay_over_a_resume(tmp_path: Path) -> None:
    """The limit is the run's, and the count goes on where it was."""
    config = trainer_config().but(average_decay=0.5)
    first = make_trainer(generator_stage(), tmp_path, config)
    for step in range(6):
        first._take_step(first._fetch(step))
    first._save()
    second = make_trainer(generator_stage(), tmp_path, config)
    before, after = first.learner.average, second.learner.average
    assert before is not None
    assert after is not None
    assert 6 == after.num_updates
    assert 0.5 == after.max_decay
    assert before.decay == after.decay == 7 / 16


def test_names_with_a_prefix_are_refused(tmp_path: Path) -> None:
    """A file whose names begin with `_orig_mod.` fits no model, and loads nothing."""
    save_tokenizer(tmp_path / "model", tiny_tokenizer(dtype=torch.float32))
    (file,) = (tmp_path / "model").glob("*.safetensors")
    save_file({f"_orig_mod.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / "model")


def test_logged_norm_is_that_of_the_gradients(tmp_path: Path) -> None:
    """It is what the step's gradients have, of which nothing was cleared or clipped before."""
    optimiser = trainer_config().optimiser.but(max_grad_norm=1e9)
    trainer = make_trainer(generator_stage(), tmp_path, trainer_config().but(optimiser=optimiser))
    logged = trainer._take_step(trainer._fetch(0))["grad_norm"]
    gradients = [p.grad.norm() for p in trainer.stage.model.parameters() if p.grad is not None]
    assert logged == pytest.approx(torch.stack(gradients).norm().item())
    assert logged > 0


def test_logged_rate_is_not_the_encoders(tmp_path: Path) -> None:
    """It is the tokenizer's; the encoder's is its share of it."""
    optimiser = trainer_config().optimiser.but(encoder_scale=0.1)
    trainer = make_trainer(tokenizer_stage(), tmp_path, trainer_config().but(optimiser=optimiser))
    logged = trainer._take_step(trainer._fetch(0))["learning_rate"]
    assert optimiser.learning_rate_at(0, NUM_STEPS) == logged
    used = {group["lr"] for group in trainer.learner.optimiser.param_groups}
    assert {logged, logged * 0.1} == used


class Judge(nn.Module):
    """One linear layer that tells pictures apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        verdict: Tensor = self.linear(pixels.flatten(1))
        return verdict


def test_schedules_reach_their_ends_in_turns(tmp_path: Path) -> None:
    """With a discriminator in every second step the rate still follows the run's steps to its
    end."""
    plain = tokenizer_stage()
    opponent = Opponent(Judge(), DiscriminatorConfig(start=0, warmup_steps=4))
    weights = TokenizerLossWeights(adversarial=0.1)
    stage = TokenizerStage(plain.model, plain.images, plain.held_out, weights, opponent=opponent)
    optimiser = trainer_config().optimiser
    make_trainer(stage, tmp_path).fit()
    logged = {row["step"]: row for row in rows(tmp_path) if row["split"] != "held_out"}
    tokenizers = {step: row for step, row in logged.items() if row["split"] == "train"}
    assert [2, 4, 6, 8, 10, 12] == sorted(tokenizers)
    for step, row in tokenizers.items():
        assert optimiser.learning_rate_at(step - 1, NUM_STEPS) == row["learning_rate"]
    assert logged[11]["learning_rate"] == opponent.config.learning_rate


def test_new_checkpoint_is_there_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where one alone is kept, it goes when its successor has its name."""
    there: list[list[str]] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        there.append(sorted(file.name for file in tmp_path.glob("step-*.pt")))
        unlink(path, missing_ok)

    checkpoints = RunCheckpoints(tmp_path, num_kept=1)
    monkeypatch.setattr(Path, "unlink", watched)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    assert [["step-00000001.pt", "step-00000002.pt"]] == there


def test_samples_carry_the_names_of_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sheets show the data's classes under the data's names."""
    drawn: list[Any] = []
    monkeypatch.setattr(generator_stage_module, "save_sheet", lambda *args: drawn.append(args))
    stage = generator_stage()
    num_classes = stage.model.config.num_classes
    stage.class_names = tuple(f"bird {index}" for index in range(num_classes))
    stage.draw(stage.model.eval(), tmp_path / "sheet.png")
    (sheet,) = drawn
    assert list(stage.class_names) == list(sheet[3])


def test_one_process_measures(tmp_path: Path) -> None:
    """The main one; the others neither read held-out data nor draw."""

    class Second(OneProcess):
        rank, count = 1, 2
        is_main = False

    class Untouched(generator_stage_module.GeneratorStage):
        def validate(self, model: nn.Module) -> dict[str, float]:
            raise AssertionError("measured twice")

    stage = generator_stage()
    stage.__class__ = Untouched
    make_trainer(stage, tmp_path, processes=Second())._validate()
    assert [] == list(tmp_path.iterdir())


def test_each_step_reads_its_examples_once(tmp_path: Path) -> None:
    """What a run asks of its data is each step's batch, in order, and nothing beside it."""
    asked: list[Tensor] = []

    class Listening(generator_stage_module.GeneratorStage):
        def fetch(self, batch: Tensor, seed: int) -> tuple[Tensor, ...]:
            asked.append(batch)
            return super().fetch(batch, seed)

    stage = generator_stage()
    stage.__class__ = Listening
    config = trainer_config()
    make_trainer(stage, tmp_path, config).fit()
    expected = [
        batch_indices(7, step, stage.num_examples, config.batch_size) for step in range(NUM_STEPS)
    ]
    assert torch.equal(torch.cat(expected), torch.cat(asked))
