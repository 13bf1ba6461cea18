"""What the study trains: one cell is one recipe with one seed; and what came of each.

The base is the masked-bit head on 16 bits of one cell, masked by logit-normal ratios, drawn in four
rounds. Every other cell differs from it in what its question asks for, and in nothing else.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from model.config import HeadKind, SamplingConfig, uniform_schedule
from model.json_config import JsonConfig
from training.masking import MaskDistribution

RESULTS = Path(__file__).with_name("results.jsonl")

SEEDS = (0, 1, 2)
BITS = (4, 8, 12, 16, 24)
LINEAR_BITS = (4, 8, 12)  # at 16, two million weights of its own take most of an hour
HEADS: tuple[HeadKind, ...] = ("masked_bit", "bit", "linear")
MASKINGS: tuple[MaskDistribution, ...] = ("logit_normal", "uniform", "arccos")
PATCHES = (1, 2, 4)
# Of the base's 16 bits.
SCHEDULES = ((16,), (8, 8), (4, 4, 4, 4), (1, 2, 4, 9), (2,) * 8, (1,) * 16)
GUIDANCE_SCALES = (1.0, 2.0, 3.0)
TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Cell(JsonConfig):
    """One training."""

    seed: int
    head: HeadKind = "masked_bit"
    bits: int = 16  # of a latent cell
    patch: int = 1  # cells a side of one token
    masking: MaskDistribution = "logit_normal"

    @property
    def bits_per_token(self) -> int:
        return self.bits * self.patch**2

    @property
    def recipe(self) -> Self:
        """The cell with the first seed, which stands for all its seeds."""
        return replace(self, seed=SEEDS[0])

    def samplings(self) -> list[SamplingConfig]:
        """Return the settings that are tried; every recipe is shown at its own best."""
        schedules: Sequence[tuple[int, ...]] = [self._schedule]
        if self.recipe == BASE:
            schedules = SCHEDULES
        return [
            SamplingConfig(guidance_scale=guidance, temperature=temperature, unmask_schedule=rounds)
            for rounds in schedules
            for guidance in GUIDANCE_SCALES
            for temperature in TEMPERATURES
        ]

    @property
    def _schedule(self) -> tuple[int, ...]:
        return uniform_schedule(self.bits_per_token, 4 if self.head == "masked_bit" else 1)


BASE = Cell(seed=SEEDS[0])


@dataclass(frozen=True, kw_only=True)
class Score(JsonConfig):
    """What one way of drawing gives."""

    sampling: SamplingConfig
    frechet: float
    accuracy: float
    images_per_s: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return super().from_json(
            {**values, "sampling": SamplingConfig.from_json(values["sampling"])}
        )


@dataclass(frozen=True, kw_only=True)
class Outcome(JsonConfig):
    """What came of a cell."""

    cell: Cell
    num_parameters: int  # of the generator
    train_s: float
    token_nats: float  # what a held-out token costs the generator
    psnr: float  # of the tokenizer, held out
    frechet_floor: float  # of held-out images that only went through the tokenizer
    scores: tuple[Score, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        parts: dict[str, Any] = {
            "cell": Cell.from_json(values["cell"]),
            "scores": tuple(Score.from_json(score) for score in values["scores"]),
        }
        return super().from_json({**values, **parts})

    def best(self, schedule: Sequence[int] | None = None) -> Score:
        """Return the score of the lowest distance; of the cell's usual schedule by default."""
        wanted = tuple(schedule or self.cell.samplings()[0].unmask_schedule)
        if schedule is None and self.cell.recipe == BASE:
            wanted = uniform_schedule(BASE.bits_per_token)
        scores = [score for score in self.scores if score.sampling.unmask_schedule == wanted]
        return min(scores, key=lambda score: score.frechet)


def all_cells() -> list[Cell]:
    """Return every cell once, all recipes of a seed before the next seed."""
    recipes = [
        *(Cell(seed=0, head=head, bits=bits) for bits in BITS for head in _heads_of(bits)),
        *(replace(BASE, masking=masking) for masking in MASKINGS),
        *(replace(BASE, patch=patch) for patch in PATCHES),
    ]
    unique = list(dict.fromkeys(recipes))
    return [replace(recipe, seed=seed) for seed in SEEDS for recipe in unique]


def _heads_of(bits: int) -> Iterable[HeadKind]:
    return (head for head in HEADS if head != "linear" or bits in LINEAR_BITS)


def read_outcomes(path: Path = RESULTS) -> dict[Cell, Outcome]:
    """Return what is known, by cell."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    outcomes = [Outcome.from_json(json.loads(line)) for line in lines]
    return {outcome.cell: outcome for outcome in outcomes}


def keep(outcome: Outcome, path: Path = RESULTS) -> None:
    """Add an outcome to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome.to_json()) + "\n")
