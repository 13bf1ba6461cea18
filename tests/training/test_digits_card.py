"""The bundled model keeps what its card says."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model import zoo
from model.checkpoint import load_model
from training import digits_card, digits_data, digits_evaluation
from training.commands import evaluate
from training.digits_card import CARD_FILE, FIGURES_FILE, card_text
from training.digits_evaluation import DigitsEvaluator, Figures
from training.judge import train_judge

INFO = zoo.resolve("digits")
MAX_WEIGHTS_BYTES = 6_000_000


def read(name: str) -> str:
    """Read a file that is bundled with the model."""
    assert INFO.directory is not None
    return (INFO.directory / name).read_text("utf-8")


@pytest.fixture
def measured() -> dict[str, Any]:
    """Read evaluation.json."""
    values: dict[str, Any] = json.loads(read(FIGURES_FILE))
    return values


def test_figures_are_of_the_bundled_weights(measured: dict[str, Any]) -> None:
    """evaluation.json names the revision that is bundled, and its default settings."""
    default = Figures.from_json(measured["figures"]).default
    assert INFO.revision == measured["revision"]
    settings = replace(
        INFO.sampling, guidance_scale=default.guidance_scale, temperature=default.temperature
    )
    assert INFO.sampling == settings


def test_card_says_what_was_measured(measured: dict[str, Any]) -> None:
    """Every figure of the card is that of evaluation.json: none was typed or is out of date."""
    assert card_text(INFO, Figures.from_json(measured["figures"])) == read(CARD_FILE)


def test_card_never_speaks_of_another_measure() -> None:
    """No distance of the card takes the name of the Inception-based one."""
    assert "FID" not in read(CARD_FILE) + read(FIGURES_FILE)


def test_weights_are_small() -> None:
    """Weights of generator and tokenizer, encoder included, are below 6 MB."""
    assert INFO.directory is not None
    sizes = [path.stat().st_size for path in INFO.directory.glob("*.safetensors")]
    assert 3 == len(sizes)
    assert MAX_WEIGHTS_BYTES > sum(sizes)


def test_command_measures_and_writes_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bar evaluate digits` leaves card, figures and pictures, here of four images a digit and
    a judge that has learnt little."""
    monkeypatch.setattr(DigitsEvaluator.draw, "__defaults__", (4,))
    monkeypatch.setattr(digits_evaluation, "train_judge", partial(train_judge, num_steps=2))
    for module in (digits_evaluation, digits_card):
        monkeypatch.setattr(module, "GUIDANCE_SCALES", (2.0,))
        monkeypatch.setattr(module, "TEMPERATURES", (1.0,))
    assert 0 == evaluate.main(["digits", "--output", str(tmp_path)])
    assert "judge accuracy" in capsys.readouterr().out
    figures = Figures.from_json(json.loads((tmp_path / FIGURES_FILE).read_text("utf-8"))["figures"])
    assert (40, 1) == (figures.num_images, len(figures.sweep))
    assert card_text(INFO, figures) == (tmp_path / CARD_FILE).read_text("utf-8")
    assert {"samples.png", "nearest.png", "sweep.png"} < {path.name for path in tmp_path.iterdir()}


def test_generated_digits_are_what_was_asked_for() -> None:
    """Of a hundred digits at the default settings the judge reads at least 98 as asked; their
    bits are no training image's."""
    generator, tokenizer = load_model(INFO, with_encoder=True)
    data = digits_data.load(INFO.tokenizer.image_size)
    evaluator = DigitsEvaluator(generator, tokenizer, INFO.sampling, data)
    sample = evaluator.draw(INFO.sampling, per_class=10)
    nearest, _ = evaluator.nearest(sample)
    assert 0.98 <= evaluator.score(sample, INFO.sampling).accuracy
    assert 0 == nearest.num_copies
