"""`bar bench quality`: what a precision changes, against the float32 model, token by token."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from model.config import ImageRequest
from service.commands.flags import (
    MODEL_SETTINGS,
    ONE_MODEL,
    add_settings_flags,
    find_model,
    positive_int,
)
from service.settings import Settings


def main(argv: Sequence[str]) -> int:
    """Measure a precision and print its errors.

    Raises: BarError and CheckpointError say in one line what is wrong.
    """
    values = vars(_parser().parse_args(argv))
    settings = Settings.load({name: values[name] for name in (*MODEL_SETTINGS, "device")})
    report = _measure(settings, values["dtype"], values["images"])
    if values["json"]:
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    for name, value in report.items():
        sys.stdout.write(f"{name:24} {f'{value:.4g}' if isinstance(value, float) else value}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar bench quality",
        description="Draw images in float32, then draw each of their tokens again in another "
        "precision, from the same tokens before it and with the same noise.",
    )
    parser.add_argument(
        "--images", type=positive_int, default=100, metavar="M", help="(default: 100)"
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["float32", "bfloat16", "fp8"],
        help="(default: bfloat16)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    add_settings_flags(parser, (*MODEL_SETTINGS, "device"), model=f"model to measure: {ONE_MODEL}")
    return parser


def _measure(settings: Settings, dtype: str, num_images: int) -> dict[str, Any]:
    # Torch is imported only here, so that `--help` and wrong usage answer at once.
    from model.checkpoint import load_model  # noqa: PLC0415
    from model.precision import PRECISIONS  # noqa: PLC0415
    from model.quality import measure_quality  # noqa: PLC0415
    from service.engine_loader import choose_device  # noqa: PLC0415

    info = find_model(settings)
    generator, tokenizer = load_model(info, device=choose_device(settings.device))
    requests = [
        ImageRequest(class_id=i % len(info.class_labels), seed=i, sampling=info.sampling)
        for i in range(num_images)
    ]
    quality = measure_quality(generator, tokenizer, PRECISIONS[dtype], requests)
    return {"model": info.name, "dtype": dtype, "images": num_images, **asdict(quality)}
