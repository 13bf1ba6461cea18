"""`bar evaluate`: how good are a model's images, or a tokenizer's reconstructions?

    model      images, drawn or from a file, beside a reference: FID and its kin
    tokenizer  pictures beside what becomes of them
    digits     every figure of the digits model's card

The same figures come out every time: images, splits and judge have fixed seeds. Across processors
the last digit of a figure may differ, since their sums round differently.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.commands.run_flags import ended, missing_extra, session_of
from training.commands.sampling_flags import add_sampling_flags, sampling_changes
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.evaluation import Lab
    from training.evaluation_report import Report
    from training.run_stage import Session

FULL_COUNT = 50_000


def main(argv: Sequence[str]) -> int:
    """Evaluate; return 0 when the figures are written, 1 after an error.

    Raises CheckpointError if there is no such model, or if it has no encoder.
    """
    arguments = _parser().parse_args(argv)
    try:
        import training.digits_card  # noqa: F401, PLC0415  torch and the extra, after --help
    except ModuleNotFoundError as error:
        return missing_extra("bar evaluate", error)
    return ended("bar evaluate", lambda: arguments.work(arguments))


def _model(arguments: argparse.Namespace) -> None:
    from training.evaluation_reference import find_reference, open_reference  # noqa: PLC0415
    from training.evaluation_run import evaluate_model, evaluate_samples  # noqa: PLC0415
    from training.image_npz import NpzImages  # noqa: PLC0415
    from training.sampling_run import Sampler, Series, changed, find_model  # noqa: PLC0415

    if arguments.model is None and arguments.samples is None:
        raise TrainingError("give a --model that draws images, --samples that are drawn, or both")
    info = None if arguments.model is None else find_model(arguments.model)
    samples = None if arguments.samples is None else NpzImages(arguments.samples)
    if info is not None:
        changed(info, sampling_changes(arguments))
    size = info.tokenizer.image_size if info is not None else NpzImages(arguments.samples).shape[1]
    found = find_reference(arguments.reference, arguments.model, size)
    count = arguments.images if samples is None else len(samples)
    with session_of(arguments) as session:
        session.say(f"{count} images beside {found.name}, in the features of {arguments.extractor}")
        lab = make_lab(arguments, session)
        if arguments.dry_run:
            return
        reference = open_reference(found, lab)
        if samples is not None:
            report = evaluate_samples(samples, info, reference, lab)
        else:
            sampler = Sampler.load(
                arguments.model,
                sampling_changes(arguments),
                session.device,
                arguments.batch_size,
                arguments.dtype,
            )
            series = Series(
                class_ids=sampler.find_classes([]),
                num_images=arguments.images,
                first_seed=arguments.seed,
            )
            report = evaluate_model(sampler, series, reference, lab)
        _deliver(report, arguments, session)


def _tokenizer(arguments: argparse.Namespace) -> None:
    from training.image_sets import open_held_out, open_images  # noqa: PLC0415
    from training.reconstruction_run import evaluate_tokenizer, find_tokenizer  # noqa: PLC0415

    tokenizer = find_tokenizer(arguments.model, is_raw=arguments.raw)
    size = tokenizer.config.image_size
    if arguments.data is None:
        images = open_held_out(Path(arguments.model), size)
    else:
        images = open_images(arguments.data, size)
    with session_of(arguments) as session:
        looks = f", in the features of {arguments.extractor}" if arguments.extractor else ""
        session.say(f"{len(images)} pictures of {images.name} beside their reconstructions{looks}")
        lab = make_lab(arguments, session) if arguments.extractor != "none" else None
        if arguments.dry_run:
            return
        report = evaluate_tokenizer(
            tokenizer.to(session.device),
            images,
            session,
            arguments.networks,
            lab,
            name=arguments.model,
            batch_size=arguments.batch_size,
        )
        _deliver(report, arguments, session)


def make_lab(arguments: argparse.Namespace, session: "Session") -> "Lab":
    """Return where images are looked at. Raises TrainingError if the extractor cannot be had."""
    from training.evaluation import Lab  # noqa: PLC0415
    from training.extractors import find_extractor  # noqa: PLC0415

    extractor = find_extractor(arguments.extractor, session.device, arguments.networks)
    return Lab(extractor, session.device, session.processes, session.stream, arguments.batch_size)


def _deliver(report: "Report", arguments: argparse.Namespace, session: "Session") -> None:
    if not session.processes.is_main:
        return
    report.write(session.folder)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    notes = "".join(f"note: {note}\n" for note in report.notes)
    print(f"{report.table()}{notes}protocol and figures are in {session.folder}")


def _digits(arguments: argparse.Namespace) -> None:
    from model.checkpoint import load_model  # noqa: PLC0415
    from training import digits_data  # noqa: PLC0415
    from training.digits_card import write_card  # noqa: PLC0415
    from training.digits_evaluation import DigitsEvaluator  # noqa: PLC0415
    from training.sampling_run import find_model  # noqa: PLC0415

    info = find_model(arguments.model)
    generator, tokenizer = load_model(info, with_encoder=True)
    data = digits_data.load(info.tokenizer.image_size)
    print("judge …", file=sys.stderr)
    evaluator = DigitsEvaluator(generator, tokenizer, info.sampling, data)
    print("images …", file=sys.stderr)
    evaluation = evaluator.evaluate()
    write_card(arguments.output, info, evaluator, evaluation)
    default, real = evaluation.figures.default, evaluation.figures.real
    print(
        f"judge accuracy {default.accuracy:.3f}, Fréchet distance {default.frechet:.2f} "
        f"(floors: {real.frechet_halves:.2f} between halves of real digits, "
        f"{real.frechet_reconstructed:.2f} for reconstructions), precision "
        f"{default.precision:.2f}, recall {default.recall:.2f}\n"
        f"the card and its pictures are in {arguments.output}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar evaluate",
        description="Measure a model or a tokenizer. Every figure is written beside the protocol "
        "that it was measured by.",
    )
    kinds = parser.add_subparsers(required=True, metavar="model | tokenizer | digits")
    _add_model(kinds.add_parser("model", help="images beside a reference: FID and its kin"))
    _add_tokenizer(kinds.add_parser("tokenizer", help="pictures beside their reconstructions"))
    _add_digits(kinds.add_parser("digits", help="every figure of the digits model's card"))
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME|DIR", help="a model, or a run")
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="FILE.npz",
        help="images that are drawn already, by `bar sample` or any program that writes arr_0",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=FULL_COUNT,
        metavar="N",
        help="to draw, classes in turn (default: %(default)s, of which alone FID is spoken)",
    )
    add_reference_flags(parser)
    add_sampling_flags(parser)
    _add_place_flags(parser, Path("runs/evaluation"))
    parser.set_defaults(work=_model)


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="NAME|DIR", help="a model, a tokenizer, or a run"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="pictures as for `bar train`, an .npz, or `digits` (default: what the run held out)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="the run's weights themselves, not their average"
    )
    _add_extractor_flags(parser, "; `none` does without distances")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--device", default="auto", help="(default: a GPU if there is one)")
    _add_place_flags(parser, Path("runs/tokenizer-evaluation"))
    parser.set_defaults(work=_tokenizer)


def _add_digits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="digits",
        metavar="NAME|DIR",
        help="model to measure (default: %(default)s, the bundled one)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/digits/evaluation"),
        metavar="DIR",
        help="where the card, its pictures and evaluation.json go (default: %(default)s)",
    )
    parser.set_defaults(work=_digits)


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Add what images are compared with, and how they are looked at."""
    parser.add_argument(
        "--reference",
        metavar="REF",
        help="a reference file of the ADM evaluator (.npz), pictures as for `bar train`, or "
        "`digits` (default: what the run held out)",
    )
    _add_extractor_flags(parser, "")


def _add_extractor_flags(parser: argparse.ArgumentParser, more: str) -> None:
    parser.add_argument(
        "--extractor",
        default="inception",
        metavar="NAME",
        help="inception, digits (the judge of digits), or module:function of your own"
        + more
        + " (default: %(default)s)",
    )
    parser.add_argument(
        "--networks", type=Path, metavar="DIR", help="where the weights of networks are looked for"
    )


def _add_place_flags(parser: argparse.ArgumentParser, output: Path) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=output,
        metavar="DIR",
        help="where evaluation.json and evaluation.md go (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and draw and measure nothing"
    )
