"""What a report shows of one stage: figures, curves and a table, made of the rows of its metrics.

Called by `report.py`, which puts them on the page. Names of metrics that are not known here are
shown as they are: a stage may measure what it likes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.memory_estimate import gigabytes
from training.progress import format_duration
from training.report_curves import Curve, Point, chart, number
from training.report_sheets import Sheet

Row = Mapping[str, Any]

TITLES = {
    "bit_loss": "Loss of a bit, in nats",
    "bit_accuracy": "Hidden bits guessed right",
    "token_nats": "Cross entropy of a token, in nats",
    "l2": "Squared error",
    "psnr": "PSNR, in dB",
    "min_bit_entropy": "Entropy of the least used bit",
    "dead_bits": "Bits that carry nothing",
    "grad_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
    "images_per_s": "Images a second",
    "data_wait": "Share of time waiting for data",
    "memory_mb": "Peak memory, in MB",
    "gpu_memory_mb": "Peak GPU memory, in MB",
    "random_share": "Share of random orders",
}
RATIO = re.compile(r"(bit_loss|bit_accuracy)_(\d+)_(\d+)$")  # of hidden bits, in percent
LINEAR = ("bit_accuracy", "data_wait", "random_share", "learning_rate", "dead_bits")
PACE_WINDOW = 50  # rows over which time left is estimated
MAX_CHARTS = 24


@dataclass(frozen=True)
class Table:
    """Numbers by name; a cell may be empty."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass
class StageView:
    """The rows of a stage, and what may be said of them."""

    name: str
    num_steps: int
    objective: str
    caption: str
    rows: Sequence[Row]
    sheets: Sequence[Sheet] = field(default_factory=list)

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"])

    @property
    def share_done(self) -> float:
        return self.step / self.num_steps

    def split(self, name: str) -> list[Row]:
        """Return the rows of a split, in order."""
        return [row for row in self.rows if row["split"] == name]

    @property
    def best(self) -> Row | None:
        """The row whose weights were kept."""
        held_out = [row for row in self.split("held_out") if self.objective in row]
        return min(held_out, key=lambda row: row[self.objective], default=None)

    def figures(self) -> list[tuple[str, str, str]]:
        """Return names, values and what is said beside them."""
        last = dict[str, Any]()
        for row in self.split("train")[-2:]:
            last |= row
        shown = [("step", f"{self.step:,}", f"of {self.num_steps:,}")]
        if self.step < self.num_steps:
            left_s = self.seconds_left()
            shown.append(("time left", format_duration(left_s) if left_s is not None else "—", ""))
        elapsed_s = self.rows[-1].get("elapsed_s")
        if elapsed_s is not None:
            shown.append(("time taken", format_duration(elapsed_s), ""))
        if "images_per_s" in last:
            waiting = f"{last.get('data_wait', 0):.0%} waiting for data"
            shown.append(("images a second", number(round(last["images_per_s"], 1)), waiting))
        if "memory_mb" in last:
            gpu = (
                f"{gigabytes(int(last['gpu_memory_mb'] * 1e6))} on the GPU"
                if "gpu_memory_mb" in last
                else ""
            )
            shown.append(("peak memory", gigabytes(int(last["memory_mb"] * 1e6)), gpu))
        if self.best is not None:
            value = number(self.best[self.objective])
            shown.append(
                (f"best {_plain(self.objective)}", value, f"at step {self.best['step']:,}")
            )
        return shown

    def seconds_left(self) -> float | None:
        """Return the time to the last step at the pace of the last rows, if it is known."""
        recent = [row for row in self.split("train") if "elapsed_s" in row][-PACE_WINDOW:]
        if len(recent) < 2:
            return None
        steps = recent[-1]["step"] - recent[0]["step"]
        taken_s = recent[-1]["elapsed_s"] - recent[0]["elapsed_s"]
        is_known = steps > 0 and taken_s > 0
        return float((self.num_steps - self.step) * taken_s / steps) if is_known else None

    def charts(self) -> list[str]:
        """Return the curves: the objective first, then what else was measured, then training."""
        held_out, train = self.split("held_out"), self.split("train")
        trained = self.objective if any(self.objective in row for row in train) else "loss"
        drawn = [
            chart(
                _title(self.objective),
                [
                    Curve("training batch", "train", points(train, trained)),
                    Curve("held out", "held-out", points(held_out, self.objective)),
                ],
                may_be_log=True,
            )
        ]
        names = _names(held_out)
        plain = [name for name in names if name != self.objective and not RATIO.match(name)]
        drawn += [_single(_title(name), name, held_out) for name in plain]
        for kind in ("bit_loss", "bit_accuracy"):
            drawn.append(chart(f"{_title(kind)}, by share hidden", _by_ratio(held_out, kind)))
        for rows in (train, self.split("discriminator")):
            said = "" if rows is train else "Discriminator: "
            drawn += [
                chart(
                    f"{said}{_title(name)}", [Curve(_plain(name), "held-out", points(rows, name))]
                )
                for name in _names(rows)
                if name != trained
            ]
        return [figure for figure in drawn if figure][:MAX_CHARTS]

    def table(self) -> Table | None:
        """Return a row for each held-out metric: at the first, the best and the last step."""
        held_out = self.split("held_out")
        names = [name for name in _names(held_out) if not RATIO.match(name)]
        rows = [(_title(name), [row.get(name) for row in self._ends().values()]) for name in names]
        return Table("Held out", list(self._ends()), rows) if rows else None

    def quarters(self) -> Table | None:
        """Return a row for each share of hidden bits, with loss and accuracy, first, best, last."""
        names = _names(self.split("held_out"))
        shares = dict.fromkeys(match.groups()[1:] for n in names if (match := RATIO.match(n)))
        kinds = {"bit_loss": "loss", "bit_accuracy": "right"}
        rows = [
            (
                f"{start}–{end} % hidden",
                [
                    row.get(f"{kind}_{start}_{end}")
                    for kind in kinds
                    for row in self._ends().values()
                ],
            )
            for start, end in shares
        ]
        columns = [f"{said}, {name}" for said in kinds.values() for name in self._ends()]
        return (
            Table("Held-out bits, by how many of a token are hidden", columns, rows)
            if rows
            else None
        )

    def _ends(self) -> dict[str, Row]:
        held_out, best = self.split("held_out"), self.best
        if not held_out or best is None:
            return {}
        chosen = {row["step"]: row for row in (held_out[0], best, held_out[-1])}
        return {
            f"step {step:,}{' (best)' if row is best else ''}": row for step, row in chosen.items()
        }


def points(rows: Iterable[Row], name: str) -> list[Point]:
    """Return the steps and values of those rows that have a value of this name."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]


def _names(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("step", "split", "elapsed_s")]


def _single(title: str, name: str, rows: Sequence[Row]) -> str:
    curve = Curve(_plain(name), "held-out", points(rows, name))
    return chart(title, [curve], may_be_log=name not in LINEAR)


def _by_ratio(rows: Sequence[Row], kind: str) -> list[Curve]:
    found = [match for name in _names(rows) if (match := RATIO.match(name)) and match[1] == kind]
    return [
        Curve(f"{match[2]}–{match[3]} %", f"c{index % 4 + 1}", points(rows, match[0]))
        for index, match in enumerate(found)
    ]


def _title(name: str) -> str:
    return TITLES.get(name, _plain(name).capitalize())


def _plain(name: str) -> str:
    return name.replace("_", " ")
