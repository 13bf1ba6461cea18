"""`bar train digits`: train the bundled model from real data, on the CPU, in minutes.

Stops on SIGTERM and Ctrl-C after saving; the same command goes on from there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.errors import TrainingError, TrainingStopped

EXIT_STOPPED = 143  # what shells report after SIGTERM


def main(argv: Sequence[str]) -> int:
    """Train; return 0 when the model is finished, 1 after an error, 143 after a request to stop."""
    arguments = _parser().parse_args(argv)
    try:
        from training.digits import RECIPE, train_digits  # noqa: PLC0415  torch, after --help
    except ModuleNotFoundError as error:
        print(
            f"bar train: {error}; training needs an extra: "
            "pip install 'bar-serve[train]', or -e '.[train]' in a checkout",
            file=sys.stderr,
        )
        return 1
    from training.stop_signal import StopSignal  # noqa: PLC0415

    try:
        with StopSignal() as stop:
            directory = train_digits(
                RECIPE.scaled(arguments.scale),
                arguments.output,
                sys.stderr,
                should_stop=lambda: stop.requested,
            )
    except TrainingStopped as stopped:
        print(f"bar train: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except TrainingError as error:
        print(f"bar train: {error}", file=sys.stderr)
        return 1
    print(f"the model is in {directory}: bar serve --model {directory}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar train",
        description="Train a tokenizer and a generator. Interrupt it at any time: the same command "
        "goes on from the last checkpoint.",
    )
    parser.add_argument("recipe", choices=["digits"], help="what to train")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/digits"),
        metavar="DIR",
        help="folder of the run: checkpoints, pictures, metrics, model (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        metavar="X",
        help="this many times the recipe's steps; 0.01 shows in seconds that everything works",
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value
