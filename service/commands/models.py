"""`bar models`: the models by name, their sizes, and which of them are on this machine."""

import argparse
import sys
from collections.abc import Sequence

from model.errors import CheckpointError
from model.zoo import model_names, resolve
from service.commands.flags import add_settings_flags
from service.settings import Settings

HEADINGS = ("name", "image", "steps", "bits/token", "classes", "revision", "where")


def main(argv: Sequence[str]) -> int:
    """Print a table of the models."""
    parser = argparse.ArgumentParser(prog="bar models", description="List the models.")
    add_settings_flags(parser, ["cache_dir"])
    settings = Settings.load(vars(parser.parse_args(argv)))
    rows = [HEADINGS, *(_row(name, settings) for name in model_names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def _row(name: str, settings: Settings) -> tuple[str, ...]:
    try:
        info = resolve(name, cache_dir=settings.cache_dir)
    except CheckpointError as error:  # the others are still worth listing
        return (name, "-", "-", "-", "-", "-", str(error))
    size = info.tokenizer.image_size
    return (
        name,
        f"{size}x{size}",
        str(info.generator.num_tokens),
        str(info.generator.bits_per_token),
        str(info.generator.num_classes),
        info.revision or "-",
        str(info.directory) if info.directory else f"not here: bar download {name}",
    )
