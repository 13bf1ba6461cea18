"""Facts of the study: its cells can be run, and its document shows what they gave."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import HeadKind
from tests.ablations.__main__ import DOCUMENT, TABLES
from tests.ablations.cells import (
    BASE,
    GUIDANCE_SCALES,
    SCHEDULES,
    SEEDS,
    TEMPERATURES,
    Cell,
    Outcome,
    all_cells,
    keep,
    read_outcomes,
)
from tests.ablations.run_cell import Laboratory, Scale
from tests.written_tables import read_table
from training.digits_data import DigitsData, LabelledImages


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A laboratory whose cells take seconds."""
    laboratory = Laboratory(tmp_path_factory.mktemp("runs"), Scale(4, 4, 4))
    few = [LabelledImages(part.pixels[:64], part.class_ids[:64]) for part in laboratory.data]
    laboratory.data = DigitsData(*few)
    return laboratory


@pytest.mark.parametrize("head", ["masked_bit", "bit", "linear"])
def test_a_cell_can_be_run_again(laboratory: Laboratory, tmp_path: Path, head: HeadKind) -> None:
    """Every head trains, draws and is scored; the same cell gives the same figures again."""
    cell = Cell(seed=0, head=head, bits=4)
    outcome = laboratory.run(cell)
    keep(outcome, tmp_path / "results.jsonl")
    assert {cell: outcome} == read_outcomes(tmp_path / "results.jsonl")
    assert len(GUIDANCE_SCALES) * len(TEMPERATURES) == len(outcome.scores)
    assert math.isfinite(outcome.best().frechet)
    anew = copy.copy(laboratory)
    anew.folder = tmp_path  # where nothing is trained yet
    assert _measured(outcome) == _measured(anew.run(cell))


def _measured(outcome: Outcome) -> str:
    """Return everything but times."""
    scores = tuple(replace(score, images_per_s=0) for score in outcome.scores)
    return json.dumps(replace(outcome, train_s=0, scores=scores).to_json())


def test_every_cell_was_run() -> None:
    """The file of outcomes has each cell once, and nothing else."""
    assert set(all_cells()) == set(read_outcomes())
    assert len(SEEDS) * len({cell.recipe for cell in all_cells()}) == len(all_cells())


def test_only_the_base_is_drawn_in_all_schedules() -> None:
    """Unmasking is a matter of sampling: one model shows all schedules."""
    assert set(SCHEDULES) == {s.unmask_schedule for s in BASE.samplings()}
    assert {(16,)} == {s.unmask_schedule for s in replace(BASE, head="bit").samplings()}


@pytest.mark.parametrize("name", TABLES)
def test_the_document_shows_the_outcomes(name: str) -> None:
    """Each table is what `python -m tests.ablations` makes of the outcomes that are kept."""
    assert TABLES[name](read_outcomes()) == read_table(DOCUMENT, name)
