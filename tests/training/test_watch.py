"""What a run leaves for people, however it ends."""

import csv
import io
import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny_runs import generator_stage, tokenizer_stage, trainer_config
from training.errors import TrainingDiverged, TrainingError, TrainingStopped
from training.generator_stage import GeneratorStage
from training.prefetch import Examples
from training.processes import OneProcess
from training.report import RunFacts, StageFacts
from training.run_stage import Session, fit, open_report
from training.stage import Stage
from training.tokenizer_stage import TokenizerStage


def session_in(folder: Path, *, stops: bool = False) -> Session:
    """Return a session that keeps to itself what is said."""
    return Session(
        folder=folder,
        stream=io.StringIO(),
        device=torch.device("cpu"),
        should_stop=lambda: stops,
        command=("bar", "train", "generator", "--data", "my pictures"),
    )


def train(session: Session, stage: Stage, *trackers: str) -> str:
    """Train a tiny stage for four steps; return what was said."""
    session.folder.mkdir(exist_ok=True)
    config = trainer_config(num_steps=4).but(validate_every=2, trackers=trackers)
    facts = RunFacts(name="tiny", settings={"seed": 7})
    report = open_report(session, facts, [StageFacts(stage.name, 4, stage.objective)])
    fit(session, stage, config, 7, report)
    assert isinstance(session.stream, io.StringIO)
    return session.stream.getvalue()


def page(folder: Path) -> str:
    """Read the report."""
    return (folder / "report.html").read_text("utf-8")


def test_command_to_go_on_can_be_pasted(tmp_path: Path) -> None:
    """It begins where the run was started, quotes what needs it, and starts as many processes."""
    alone = session_in(tmp_path)
    here = shlex.quote(str(Path.cwd()))
    assert f"cd {here}\nbar train generator --data 'my pictures'" == alone.resume_command

    class Two(OneProcess):
        count = 2

    assert (
        f"cd {here}\ntorchrun --nproc-per-node 2 -m service train generator --data 'my pictures'"
        == replace(alone, processes=Two()).resume_command
    )


def test_finished_run_leaves_table_curves_report_and_events(tmp_path: Path) -> None:
    """Everything lies in the run's folder; the last line says what it took and where to look."""
    said = train(session_in(tmp_path), generator_stage(), "tensorboard")
    rows = (tmp_path / "generator" / "metrics.jsonl").read_text("utf-8").splitlines()
    with (tmp_path / "generator" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(row)["step"] for row in rows] == [int(row["step"]) for row in table]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<b>finished</b>" in page(tmp_path)
    assert "bar train generator --data &#x27;my pictures&#x27;" in page(tmp_path)
    assert list((tmp_path / "tensorboard" / "generator").glob("events.*"))
    last = said.splitlines()[-1]
    assert last.startswith("generator: 4 steps in ")
    assert "images/s" in last
    assert last.endswith(f"all of it in {tmp_path / 'report.html'}")


def test_page_is_there_from_step_zero(tmp_path: Path) -> None:
    """Report, curves and table are written at each measurement, from the first one on."""
    seen = list[bool]()

    class Looking(GeneratorStage):
        def loss(self, examples: Examples, step: int) -> tuple[Tensor, dict[str, float]]:
            there = (tmp_path / name for name in ("report.html", "curves.png"))
            seen.append(all(path.is_file() for path in there) and "running" in page(tmp_path))
            return super().loss(examples, step)

    stage = generator_stage()
    stage.__class__ = Looking
    train(session_in(tmp_path), stage)
    assert [True] * 4 == seen


def test_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    """A run that was asked to stop says so on its page, with the command."""
    with pytest.raises(TrainingStopped):
        train(session_in(tmp_path, stops=True), generator_stage())
    assert "<b>stopped</b> stopped at generator step 1 of 4, and saved" in page(tmp_path)


def test_failed_run_says_why(tmp_path: Path) -> None:
    """A loss that is not finite stands on the page."""

    class Poisoned(GeneratorStage):
        def loss(self, examples: Examples, step: int) -> tuple[Tensor, dict[str, float]]:
            loss, metrics = super().loss(examples, step)
            return loss * float("nan"), metrics

    stage = generator_stage()
    stage.__class__ = Poisoned
    with pytest.raises(TrainingDiverged):
        train(session_in(tmp_path), stage)
    assert "<b>failed</b> TrainingDiverged: generator step 0: loss nan" in page(tmp_path)


def test_warnings_are_said_once_and_kept(tmp_path: Path) -> None:
    """What a stage warns of at every measurement is said once, and stands on the page, also after
    the run went on elsewhere."""

    class Worried(TokenizerStage):
        def validate(self, model: nn.Module) -> dict[str, float]:
            logging.getLogger("training.tokenizer_stage").warning("2 of 4 bits are <dead>")
            return super().validate(model)

    for _ in range(2):
        stage = tokenizer_stage()
        stage.__class__ = Worried
        session = session_in(tmp_path)
        session.warn("little memory")
        said = train(session, stage)
    assert 1 == said.count("warning: little memory")
    kept = (tmp_path / "warnings.txt").read_text("utf-8").splitlines()
    assert 1 == kept.count("2 of 4 bits are <dead>") == kept.count("little memory")
    assert len(kept) == len(set(kept))
    assert "<li>2 of 4 bits are &lt;dead&gt;</li>" in page(tmp_path)


def test_a_tracker_that_cannot_be_had_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    """No step is taken and nothing is written."""
    with pytest.raises(TrainingError, match="no tracker 'diary'"):
        train(session_in(tmp_path), generator_stage(), "diary")
    assert [] == list(tmp_path.iterdir())
