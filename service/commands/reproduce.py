"""`bar reproduce`: make an image again from its own text chunks, and compare every pixel."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.errors import CheckpointError
from model.zoo import ModelInfo, model_names
from service.commands.flags import add_settings_flags, find_model
from service.commands.generate import ENGINE_SETTINGS, draw, write
from service.errors import BarError
from service.images import contact_sheet, encode
from service.provenance import Provenance
from service.reproduction import Comparison, Original, compare
from service.settings import Settings
from service.submission import Asking, make_job

MATCHED, DIFFERS, CANNOT = 0, 1, 2
SETTINGS = (*(name for name in ENGINE_SETTINGS if name != "model"), "max_reproduce_bytes")


def main(argv: Sequence[str]) -> int:
    """Make an image again; return 0 if every pixel matches, 1 if not, 2 if it cannot be made."""
    values = vars(_parser().parse_args(argv))
    file, output, as_json = (values.pop(name) for name in ("file", "output", "json"))
    try:
        settings = Settings.load(values)
        original = Original.read(_content(file, settings.max_reproduce_bytes))
        info = _model_of(original.record, settings)
        comparison = _reproduce(original, info, settings, output)
    except (BarError, CheckpointError) as error:
        print(f"bar reproduce: {error}", file=sys.stderr)
        return CANNOT
    say = _json if as_json else _text
    print(say(file, original.record, info, comparison))
    return MATCHED if comparison.matched else DIFFERS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar reproduce",
        description="Make an image again from what its PNG says, and compare every pixel.",
        epilog="Exit status: 0 if every pixel matches, 1 if some differ, 2 if the image cannot be "
        "made again.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.png", help="an image that was made here")
    parser.add_argument("--output", type=Path, metavar="OUT.png", help="file to write the new one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--model", help="name or folder of the model; the one that the PNG names if left out"
    )
    add_settings_flags(parser, SETTINGS)
    return parser


def _content(file: Path, max_bytes: int) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(max_bytes + 1)
    except OSError as error:
        raise BarError(f"cannot read {file}: {error.strerror}") from None
    if len(content) > max_bytes:
        raise BarError(f"{file} has more than {max_bytes} bytes: see --max-reproduce-bytes")
    return content


def _model_of(record: Provenance, settings: Settings) -> ModelInfo:
    if "model" not in settings.model_fields_set:
        # The name comes from a stranger's file: it is looked up, and never a path.
        if record.model not in model_names():
            raise BarError(
                f"no model is called {record.model!r} here: give its folder as --model; its "
                f"revision is {record.revision}"
            )
        settings = settings.model_copy(update={"model": record.model})
    return find_model(settings)


def _reproduce(
    original: Original, info: ModelInfo, settings: Settings, output: Path | None
) -> Comparison:
    """Draw the image again, write it to `output` if there is one, and compare.

    Raises: BarError and CheckpointError say why that is not possible.
    """
    record = original.record
    allowing = settings.model_copy(update={"max_images": record.num_images})
    job = make_job(original.request_to(info), info, allowing, Asking(output_format="png"))
    pixels = original.pixels_of(info)
    again = contact_sheet(draw(job, info, settings))
    if output is not None:
        texts = Provenance.of(info, record.image, record.num_images).texts()
        write(output, encode(again, "png", texts))
    return compare(pixels, again)


def _text(file: Path, record: Provenance, info: ModelInfo, comparison: Comparison) -> str:
    label, first, last = info.class_labels[record.image.class_id], record.seeds[0], record.seeds[-1]
    seeds = f"seed {first}" if record.num_images == 1 else f"seeds {first} to {last}"
    if comparison.matched:
        verdict = f"every pixel matches, all {comparison.num_pixels} of them"
    else:
        verdict = (
            f"{comparison.differing_pixels} of {comparison.num_pixels} pixels differ, by at most "
            f"{comparison.largest_difference} of 255; it may have been made on another device, in "
            "another precision (--dtype) or with another number of slots (--num-slots)"
        )
    return (
        f"{file}: {info.name}, class {label}, {seeds}, made by bar-serve {record.version}\n"
        f"{verdict}"
    )


def _json(file: Path, record: Provenance, info: ModelInfo, comparison: Comparison) -> str:
    values = {
        "file": str(file),
        "matched": comparison.matched,
        **asdict(comparison),
        "model": info.name,
        "revision": info.revision,
        "class_id": record.image.class_id,
        "class_name": info.class_labels[record.image.class_id].name,
        "seeds": record.seeds,
        **record.image.sampling.to_json(),
        "version": record.version,
    }
    return json.dumps(values)
