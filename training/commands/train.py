"""`bar train`: a tokenizer, a generator, or the bundled digits model from beginning to end.

Stops on SIGTERM and Ctrl-C after saving; the same command goes on from there.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.commands.run_flags import add_run_flags, build, ended, missing_extra, session_of


def main(argv: Sequence[str]) -> int:
    """Train; return 0 when the model is finished, 1 after an error, 143 after a request to stop."""
    arguments = _parser().parse_args(argv)
    train = {"tokenizer": _tokenizer, "generator": _generator, "digits": _digits}
    try:
        import training.run_config  # noqa: F401, PLC0415  torch and the extra, after --help
    except ModuleNotFoundError as error:
        return missing_extra("bar train", error)
    return ended("bar train", lambda: train[arguments.recipe](arguments))


def _tokenizer(arguments: argparse.Namespace) -> None:
    from training.data_path import shown  # noqa: PLC0415
    from training.presets import GENERATORS  # noqa: PLC0415
    from training.run_config import TokenizerRun  # noqa: PLC0415
    from training.tokenizer_run import plan, train_tokenizer  # noqa: PLC0415

    run = build(TokenizerRun, arguments, {"start_from": arguments.start_from})
    with session_of(arguments) as session:
        if arguments.dry_run:
            plan(run, session)
            return
        directory = train_tokenizer(run, session)
    preset = arguments.preset if arguments.preset in GENERATORS else "NAME"
    session.conclude(
        f"the tokenizer is in {directory}:\nbar train generator --preset {preset} --tokenizer "
        f"{arguments.output} --data {shown(run.data.path)}"
    )


def _generator(arguments: argparse.Namespace) -> None:
    from training.generator_run import plan, train_generator, with_classes  # noqa: PLC0415
    from training.run_config import GeneratorRun  # noqa: PLC0415

    run = with_classes(build(GeneratorRun, arguments, {"tokenizer": arguments.tokenizer}))
    with session_of(arguments) as session:
        if arguments.dry_run:
            plan(run, session)
            return
        directory = train_generator(run, session)
    session.conclude(f"the model is in {directory}: bar serve --model {directory}")


def _digits(arguments: argparse.Namespace) -> None:
    from training.digits import RECIPE, plan, train_digits  # noqa: PLC0415

    recipe = RECIPE.scaled(arguments.scale)
    with session_of(arguments) as session:
        if arguments.dry_run:
            plan(recipe, session)
            return
        directory = train_digits(recipe, session)
    session.conclude(f"the model is in {directory}: bar serve --model {directory}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar train",
        description="Train a tokenizer and a generator. Interrupt it at any time: the same command "
        "goes on from the last checkpoint.",
    )
    kinds = parser.add_subparsers(dest="recipe", required=True, metavar="WHAT")
    tokenizer = kinds.add_parser("tokenizer", help="stage one: pictures through a few bits")
    add_run_flags(tokenizer, Path("runs/tokenizer"))
    tokenizer.add_argument(
        "--start-from", metavar="NAME|DIR", help="a tokenizer to go on from, for finetuning"
    )
    generator = kinds.add_parser("generator", help="stage two: a model of the tokenizer's bits")
    add_run_flags(generator, Path("runs/generator"))
    generator.add_argument(
        "--tokenizer",
        metavar="NAME|DIR",
        help="a tokenizer's directory or run, or a model with an encoder",
    )
    digits = kinds.add_parser("digits", help="the bundled model, both stages, in minutes on a CPU")
    digits.add_argument(
        "--output",
        type=Path,
        default=Path("runs/digits"),
        metavar="DIR",
        help="folder of the run: checkpoints, pictures, metrics, model (default: %(default)s)",
    )
    digits.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        metavar="X",
        help="this many times the recipe's steps; 0.01 shows in seconds that everything works",
    )
    digits.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value
