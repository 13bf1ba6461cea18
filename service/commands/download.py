"""`bar download`: fetch a published model and convert it, so that serving starts at once."""

import argparse
import sys
from collections.abc import Sequence

from model.zoo import model_names
from service.commands.flags import add_settings_flags, find_model
from service.settings import Settings


def main(argv: Sequence[str]) -> int:
    """Put a model on this machine and print where it lies.

    Raises: CheckpointError says what went wrong and what to do.
    """
    parser = argparse.ArgumentParser(
        prog="bar download",
        description="Fetch a published model. What was fetched before is not fetched again; a "
        "transfer that broke off is resumed.",
    )
    parser.add_argument("model", metavar="NAME", help=f"one of {', '.join(model_names())}")
    add_settings_flags(parser, ["revision", "cache_dir"])
    values = vars(parser.parse_args(argv))
    info = find_model(Settings.load({**values, "offline": False}))
    sys.stdout.write(f"{info.name} (revision {info.revision}) is in {info.directory}\n")
    return 0
