"""`bar sample`: many images of a model at once, as a grid or for an evaluator.

For single images with provenance there is `bar generate`; here are grids with a class a column,
and `.npz` files of any number of images in the form that the ADM evaluator reads.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.commands.run_flags import ended, missing_extra
from training.errors import TrainingError


def main(argv: Sequence[str]) -> int:
    """Draw; return 0 when the file is written, 1 after an error.

    Raises CheckpointError if there is no such model.
    """
    arguments = _parser().parse_args(argv)
    try:
        import training.sampling_run  # noqa: F401, PLC0415  torch and the extra, after --help
    except ModuleNotFoundError as error:
        return missing_extra("bar sample", error)
    return ended("bar sample", lambda: _sample(arguments))


def _sample(arguments: argparse.Namespace) -> None:
    from training.run_stage import choose_device  # noqa: PLC0415
    from training.sampling_run import Sampler, save_npz, save_sheet  # noqa: PLC0415

    if arguments.output.suffix not in (".png", ".npz"):
        raise TrainingError(f"--output must end in .png or .npz, got {arguments.output}")
    sampler = Sampler.load(
        arguments.model,
        {
            "guidance_scale": arguments.guidance_scale,
            "temperature": arguments.temperature,
            "order": arguments.order,
        },
        choose_device(arguments.device),
        arguments.batch_size,
    )
    classes = sampler.find_classes(arguments.classes)
    if arguments.output.suffix == ".png":
        save_sheet(
            arguments.output, sampler, classes, arguments.per_class, arguments.seed, sys.stderr
        )
    else:
        save_npz(
            arguments.output, sampler, classes, arguments.per_class, arguments.seed, sys.stderr
        )
    names = ", ".join(sampler.info.class_labels[class_id].name for class_id in classes[:10])
    print(
        f"{len(classes) * arguments.per_class} images of {names}"
        f"{' …' if len(classes) > 10 else ''} are in {arguments.output}: guidance "
        f"{sampler.sampling.guidance_scale:g}, temperature {sampler.sampling.temperature:g}, "
        f"{sampler.sampling.order} order, seeds from {arguments.seed}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar sample",
        description="Draw a grid of images (.png), or as many as an evaluator needs (.npz).",
    )
    parser.add_argument("--model", required=True, metavar="NAME|DIR", help="a model, or a run")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="CLASS",
        help="index or name, may be repeated; without it, all classes",
    )
    parser.add_argument("--per-class", type=int, default=4, metavar="N", help="(default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="1 to 30")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 to 10")
    parser.add_argument("--order", choices=["raster", "random"], help="order of the tokens")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--device", default="auto", help="(default: a GPU if there is one)")
    parser.add_argument(
        "--output", type=Path, default=Path("samples.png"), metavar="FILE", help=".png or .npz"
    )
    return parser
