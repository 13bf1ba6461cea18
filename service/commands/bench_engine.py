"""`bar bench engine`: how fast this machine draws images, against its own ceilings and the twin."""

import argparse
import json
import sys
from collections.abc import Sequence

from model.config import PRESETS
from service.commands.flags import (
    MODEL_SETTINGS,
    ONE_MODEL,
    add_settings_flags,
    find_model,
    positive_int,
)
from service.errors import StartupError
from service.images import encode
from service.settings import Settings


def main(argv: Sequence[str]) -> int:
    """Measure the engine and print a report.

    Raises: BarError and CheckpointError say in one line what is wrong.
    """
    values = vars(_parser().parse_args(argv))
    settings = Settings.load({name: values[name] for name in (*MODEL_SETTINGS, "device")})
    report = _measure(settings, values)
    if values["json"]:
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    for name, value in report.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        sys.stdout.write(f"{name:24} {shown}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar bench engine", description="Measure the engine, guidance and decoding included."
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="draw the weights of a published model instead of loading them: as fast, no download",
    )
    parser.add_argument(
        "--batch", type=positive_int, default=16, metavar="N", help="slots (default: 16)"
    )
    parser.add_argument(
        "--images", type=positive_int, metavar="M", help="images of each run (default: the batch)"
    )
    parser.add_argument("--runs", type=positive_int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "fp8"],
        help="(default: auto)",
    )
    parser.add_argument("--against", choices=["twin"], help="run the slow generator in turn")
    parser.add_argument(
        "--batch-invariant",
        action="store_true",
        help="compute whole batches, as a service does by default",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    add_settings_flags(parser, (*MODEL_SETTINGS, "device"), model=f"model to measure: {ONE_MODEL}")
    return parser


def _measure(settings: Settings, values: dict[str, object]) -> dict[str, float | int | str]:
    # Torch is imported only here, so that `--help` and wrong usage answer at once.
    import torch  # noqa: PLC0415

    from model.benchmark import BenchmarkPlan, run_benchmark  # noqa: PLC0415
    from model.checkpoint import load_model  # noqa: PLC0415
    from model.device import num_physical_cores  # noqa: PLC0415
    from model.generator import Generator  # noqa: PLC0415
    from model.precision import choose_precision  # noqa: PLC0415
    from model.tokenizer import Tokenizer  # noqa: PLC0415
    from service.engine_loader import choose_device  # noqa: PLC0415

    device = choose_device(settings.device)
    torch.set_num_threads(num_physical_cores())
    if values["random_weights"]:
        preset = PRESETS.get(settings.model)
        if preset is None:
            raise StartupError(f"--random-weights takes {', '.join(PRESETS)}, not a directory")
        torch.manual_seed(0)
        generator = Generator(preset.generator).eval().to(device)
        tokenizer = Tokenizer(preset.tokenizer, with_encoder=False).eval().to(device)
        sampling = preset.sampling
    else:
        info = find_model(settings)
        generator, tokenizer = load_model(info, device=device)
        sampling = info.sampling
    num_parameters = sum(parameter.numel() for parameter in generator.parameters())
    precision = choose_precision(str(values["dtype"]), torch.device(device), num_parameters)
    plan = BenchmarkPlan(
        batch=int(str(values["batch"])),
        images=int(str(values["images"] or values["batch"])),
        runs=int(str(values["runs"])),
        precision=precision,
        against_twin=values["against"] == "twin",
        batch_invariant=bool(values["batch_invariant"]),
    )
    return run_benchmark(
        generator, tokenizer, sampling, plan, lambda pixels: encode(pixels, "png", {}), _say
    )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
