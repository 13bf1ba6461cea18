"""`bar evaluate digits`: measure a digits model and write its card.

The same figures come out every time: splits, judge and images have fixed seeds. Across processors
the last digit of a figure may differ, since their sums round differently.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Evaluate; return 0 when the card is written.

    Raises CheckpointError if there is no such model, or if it has no encoder.
    """
    arguments = _parser().parse_args(argv)
    try:
        from training.digits_card import write_card  # noqa: PLC0415  torch, after --help
    except ModuleNotFoundError as error:
        print(
            f"bar evaluate: {error}; evaluation needs an extra: "
            "pip install 'bar-serve[train]', or -e '.[train]' in a checkout",
            file=sys.stderr,
        )
        return 1
    from model import zoo  # noqa: PLC0415
    from model.checkpoint import load_model  # noqa: PLC0415
    from training import digits_data  # noqa: PLC0415
    from training.digits_evaluation import DigitsEvaluator  # noqa: PLC0415

    info = zoo.resolve(arguments.model)
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
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar evaluate",
        description="Measure a model against held-out digits: accuracy, Fréchet distance, "
        "precision and recall, distance to the training images, guidance and temperature.",
    )
    parser.add_argument("recipe", choices=["digits"], help="what the model was trained on")
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
    return parser
