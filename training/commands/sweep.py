"""`bar sweep`: which sampling settings are best, and what they cost.

The same images with every combination of settings, each measured as `bar evaluate model` does.
Resumable row by row; `bar export --sampling-from` makes the best row a model's defaults.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.commands.evaluate import add_reference_flags, make_lab
from training.commands.run_flags import ended, missing_extra, session_of
from training.commands.sampling_flags import add_drawing_flags, schedule

NUM_IMAGES = 10_000


def main(argv: Sequence[str]) -> int:
    """Sweep; return 0 when all rows are there, 1 after an error, 143 if asked to stop.

    Raises CheckpointError if there is no such model.
    """
    arguments = _parser().parse_args(argv)
    try:
        import training.sweep_run  # noqa: F401, PLC0415  torch and the extra, after --help
    except ModuleNotFoundError as error:
        return missing_extra("bar sweep", error)
    return ended("bar sweep", lambda: _sweep(arguments))


def _sweep(arguments: argparse.Namespace) -> None:
    from training.evaluation_figures import names_of  # noqa: PLC0415
    from training.evaluation_reference import find_reference  # noqa: PLC0415
    from training.evaluation_report import table  # noqa: PLC0415
    from training.sampling_run import Sampler, Series, find_model  # noqa: PLC0415
    from training.sweep_run import grid, keep, open_sweep, recipe_of, run_sweep  # noqa: PLC0415

    info = find_model(arguments.model)
    settings = grid(
        info,
        {
            "guidance_scale": arguments.guidance_scale,
            "temperature": arguments.temperature,
            "unmask_schedule": arguments.unmask_schedule,
            "order": arguments.order,
        },
    )
    found = find_reference(arguments.reference, arguments.model, info.tokenizer.image_size)
    series = Series(
        class_ids=tuple(range(len(info.class_labels))),
        num_images=arguments.images,
        first_seed=arguments.seed,
    )
    with session_of(arguments) as session:
        lab = make_lab(arguments, session)
        sweep = open_sweep(
            session.folder,
            recipe_of(info, series, found, lab, arguments.dtype),
            names_of(lab.extractor, arguments.images),
            arguments.best_by,
        )
        missing = sum(sweep.row_of(sampling) is None for sampling in settings)
        session.say(
            f"{len(settings)} settings, {missing} of them to be measured on {arguments.images} "
            f"images each, beside {found.name}, in the features of {arguments.extractor}"
        )
        if arguments.dry_run:
            return
        sweep = run_sweep(
            sweep,
            settings,
            lambda: Sampler.load(
                arguments.model, {}, session.device, arguments.batch_size, arguments.dtype
            ),
            series,
            found,
            lab,
            session,
        )
        keep(sweep, session)
        if session.processes.is_main:
            print(f"{table(sweep.table())}tables and picture are in {session.folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar sweep",
        description="Measure every combination of sampling settings. A finished row is not drawn "
        "again; a setting that is left out keeps the model's default.",
    )
    parser.add_argument("--model", required=True, metavar="NAME|DIR", help="a model, or a run")
    parser.add_argument(
        "--guidance-scale", type=_numbers, default=(), metavar="X,X,…", help="such as 1,2,4"
    )
    parser.add_argument(
        "--temperature", type=_numbers, default=(), metavar="X,X,…", help="such as 1,1.5,2"
    )
    parser.add_argument(
        "--unmask-schedule",
        type=schedule,
        action="append",
        default=[],
        metavar="N,N,…",
        help="bits revealed in each round, such as 2,2,5,7; may be repeated",
    )
    parser.add_argument(
        "--order",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="ORDER,…",
        help="raster, random, or both with a comma",
    )
    parser.add_argument(
        "--images", type=int, default=NUM_IMAGES, metavar="N", help="a row (default: %(default)s)"
    )
    parser.add_argument(
        "--best-by",
        choices=["frechet", "score", "precision", "recall", "accuracy"],
        default="frechet",
        help="what decides which row is best (default: %(default)s, the lowest)",
    )
    add_reference_flags(parser)
    add_drawing_flags(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/sweep"),
        metavar="DIR",
        help="where sweep.json, .csv, .md and .png go (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be measured, and measure nothing"
    )
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
