"""The tables and pictures of docs/ablations.md, from what the cells gave.

A value is the mean over the seeds, its error the standard deviation between them; each seed is
shown at the best of the same guidance scales and temperatures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from model.config import HeadKind
from tests.ablations.cells import (
    BASE,
    BITS,
    HEADS,
    MASKINGS,
    PATCHES,
    SCHEDULES,
    SEEDS,
    Cell,
    Outcome,
)

Outcomes = Mapping[Cell, Outcome]
Value = Callable[[Outcome], float]
NAMES = {"masked_bit": "masked bit", "bit": "bit", "linear": "linear"}
FIGURES = ("distance", "accuracy", "guidance, temperature", "images/s")


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    error: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        return cls(mean(values), stdev(values))

    def text(self, digits: int = 2) -> str:
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


def seeds_of(recipe: Cell, outcomes: Outcomes) -> list[Outcome]:
    """Return what every seed of a recipe gave."""
    return [outcomes[replace(recipe, seed=seed)] for seed in SEEDS]


def heads_table(outcomes: Outcomes) -> str:
    """Return heads against bits of a token: how far their images are from real ones."""
    rows = [["bits", "tokenizer: PSNR, dB", "its distance", *(NAMES[head] for head in HEADS)]]
    for bits in BITS:
        base = seeds_of(replace(BASE, bits=bits), outcomes)
        rows.append(
            [
                str(bits),
                Spread.over([outcome.psnr for outcome in base]).text(1),
                Spread.over([outcome.frechet_floor for outcome in base]).text(),
                *(_of_head(head, bits, outcomes, distance) for head in HEADS),
            ]
        )
    return _table(rows)


def costs_table(outcomes: Outcomes) -> str:
    """Return heads against bits of a token: what a held-out token costs them."""
    rows = [["bits", *(NAMES[head] for head in HEADS)]]
    rows += [
        [str(bits), *(_of_head(head, bits, outcomes, cost) for head in HEADS)] for bits in BITS
    ]
    return _table(rows)


def distance(outcome: Outcome) -> float:
    """Return how far the cell's images are from real ones, at their best."""
    return outcome.best().frechet


def cost(outcome: Outcome) -> float:
    """Return what a held-out token costs the cell's generator, in nats."""
    return outcome.token_nats


def _of_head(head: HeadKind, bits: int, outcomes: Outcomes, value: Value) -> str:
    recipe = replace(BASE, bits=bits, head=head)
    return _spread(recipe, outcomes, value).text() if recipe in outcomes else "–"


def maskings_table(outcomes: Outcomes) -> str:
    """Return the distributions that mask ratios are drawn from."""
    rows = [["mask ratios", *FIGURES]]
    for masking in MASKINGS:
        recipe = replace(BASE, masking=masking)
        rows.append([masking.replace("_", "-"), *_figures(seeds_of(recipe, outcomes))])
    return _table(rows)


def schedules_table(outcomes: Outcomes) -> str:
    """Return the ways to unmask the bits of a token of one and the same model."""
    rows = [["bits revealed in each round", *FIGURES]]
    for schedule in SCHEDULES:
        name = ", ".join(map(str, schedule))
        rows.append([name, *_figures(seeds_of(BASE, outcomes), schedule)])
    return _table(rows)


def patches_table(outcomes: Outcomes) -> str:
    """Return how many cells a token holds."""
    rows = [["cells in a token", "tokens", "bits in a token", *FIGURES]]
    for patch in PATCHES:
        recipe = replace(BASE, patch=patch)
        sizes = [str(patch**2), str(16 // patch**2), str(recipe.bits_per_token)]
        rows.append([*sizes, *_figures(seeds_of(recipe, outcomes))])
    return _table(rows)


def _figures(seeds: Sequence[Outcome], schedule: Sequence[int] | None = None) -> list[str]:
    scores = [outcome.best(schedule) for outcome in seeds]
    settings = {f"{s.sampling.guidance_scale:g}, {s.sampling.temperature:g}": None for s in scores}
    return [
        Spread.over([score.frechet for score in scores]).text(),
        Spread.over([score.accuracy for score in scores]).text(3),
        " / ".join(settings),
        f"{max(score.images_per_s for score in scores):.0f}",
    ]


def _spread(recipe: Cell, outcomes: Outcomes, value: Value) -> Spread:
    return Spread.over([value(outcome) for outcome in seeds_of(recipe, outcomes)])


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_heads(path: Path, outcomes: Outcomes) -> None:
    """Plot distance, cost of a token and size of each head against the bits."""
    figure = Figure(figsize=(13.2, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    values: dict[str, Value] = {
        "Fréchet distance, judge's features": distance,
        "held-out cost of a token, nats": cost,
        "parameters of the generator, millions": lambda outcome: outcome.num_parameters / 1e6,
    }
    for axis, (label, value) in zip(axes, values.items(), strict=True):
        for head in HEADS:
            bits = [b for b in BITS if replace(BASE, bits=b, head=head) in outcomes]
            spreads = [_spread(replace(BASE, bits=b, head=head), outcomes, value) for b in bits]
            axis.errorbar(
                bits, [s.mean for s in spreads], [s.error for s in spreads],
                marker=".", capsize=3, label=NAMES[head],
            )  # fmt: skip
        axis.set(xlabel="bits of a token", xticks=BITS, ylabel=label, ylim=(0, None))
        axis.grid(visible=True, alpha=0.3)
    floors = [
        _spread(replace(BASE, bits=b), outcomes, lambda outcome: outcome.frechet_floor).mean
        for b in BITS
    ]
    axes[0].plot(BITS, floors, ":", color="grey", label="tokenizer alone")
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
