"""`bar generate`: images without a server, the same bytes that a server would answer with.

A request goes through the checks of the HTTP interface and then to an engine of the same settings:
on one machine, what differs between the two is who waits.
"""

import argparse
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from model.config import Order
from model.zoo import ModelInfo
from service.commands.flags import MODEL_SETTINGS, ONE_MODEL, add_settings_flags, find_model
from service.errors import BarError
from service.images import Pixels, contact_sheet, encode
from service.jobs import Job, OutputFormat
from service.provenance import Provenance
from service.schemas import GenerationRequest
from service.settings import Settings
from service.submission import Asking, make_job
from service.validation import explain

FORMATS: dict[str, OutputFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
ENGINE_SETTINGS = (*MODEL_SETTINGS, "device", "dtype", "batch_invariant", "threads", "num_slots")


def main(argv: Sequence[str]) -> int:
    """Make images and write them to files.

    Raises: BarError and CheckpointError say in one line what is wrong.
    """
    values = vars(_parser().parse_args(argv))
    output: Path = values.pop("output")
    flags = {name: values.pop(name) for name in ENGINE_SETTINGS}
    output_format = _format_of(output)
    settings = Settings.load({**flags, "max_images": values["num_images"]})
    info = find_model(settings)
    given = {name: value for name, value in values.items() if value is not None}
    job = make_job(_request(given), info, settings, Asking(output_format=output_format))
    images = draw(job, info, settings)
    for path, content in _files(output, job, images, info):
        write(path, content)
        sys.stdout.write(f"wrote {path}\n")
    label, first, last = info.class_labels[job.images[0].class_id], job.images[0], job.images[-1]
    seeds = f"seed {first.seed}" if first is last else f"seeds {first.seed} to {last.seed}"
    sys.stdout.write(f"{info.name}: class {label}, {seeds}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bar generate",
        description="Make images without a server.",
        epilog="Several images go into one contact sheet, or into a file each if the output's "
        "name has {seed} or {index} in it. Sampling settings left out are the model's own.",
    )
    parser.add_argument(
        "--class", required=True, metavar="CLASS", help="index, WordNet id or name of the class"
    )
    parser.add_argument("--seed", type=int, help="seed of the first image; drawn if left out")
    parser.add_argument(
        "--num-images", type=int, default=1, metavar="N", help="of the class (default: 1)"
    )
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="1 to 30")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 to 10")
    parser.add_argument(
        "--unmask-schedule", type=_schedule, metavar="N,N,…", help="bits revealed in each round"
    )
    parser.add_argument("--order", choices=get_args(Order), help="order of the tokens")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("image.png"),
        help="file to write: .png, .jpg or .webp (default: image.png)",
    )
    add_settings_flags(parser, ENGINE_SETTINGS, model=f"model that makes them: {ONE_MODEL}")
    return parser


def _schedule(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _format_of(output: Path) -> OutputFormat:
    if unknown := set(re.findall(r"\{.*?\}", output.name)) - {"{seed}", "{index}"}:
        raise BarError(
            f"--output {output}: {', '.join(sorted(unknown))} stands for nothing; "
            "a name may hold {seed} and {index}"
        )
    try:
        return FORMATS[output.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMATS)
        raise BarError(f"--output {output}: the name must end in one of {known}") from None


def _request(values: dict[str, Any]) -> GenerationRequest:
    try:
        return GenerationRequest.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise explain(problem, problem["loc"]) from None


def draw(job: Job, info: ModelInfo, settings: Settings) -> Pixels:
    """Make the images of `job`, uint8 (n, h, w, 3), on an engine of `settings`."""
    # Torch, after everything that can be refused without it.
    from service.engine_loader import load_engine  # noqa: PLC0415

    engine = load_engine(info, settings)
    waiting, images = deque(enumerate(job.images)), dict[int, Pixels]()
    indices: dict[int, int] = {}  # of the images in the slots
    while waiting or indices:
        while waiting and engine.free_slots:
            index, request = waiting.popleft()
            indices[engine.admit(request)] = index
        if full := engine.step():
            images |= zip((indices.pop(slot) for slot in full), engine.decode(full), strict=True)
    return np.stack([images[index] for index in range(len(job.images))])


def _files(output: Path, job: Job, images: Pixels, info: ModelInfo) -> Iterator[tuple[Path, bytes]]:
    """Yield each file's path and content: one contact sheet, or one file for each image."""
    if len(images) == 1 or "{seed}" in output.name or "{index}" in output.name:
        for index, (request, pixels) in enumerate(zip(job.images, images, strict=True)):
            name = output.name.replace("{seed}", str(request.seed))
            path = output.with_name(name.replace("{index}", str(index)))
            yield path, encode(pixels, job.output_format, Provenance.of(info, request).texts())
    else:
        record = Provenance.of(info, job.images[0], len(images))
        yield output, encode(contact_sheet(images), job.output_format, record.texts())


def write(path: Path, content: bytes) -> None:
    """Write a file. Raises: BarError says why that is not possible."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BarError(f"cannot write {path}: {error.strerror}") from None
