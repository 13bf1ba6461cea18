"""What the subcommands share: flags that are settings, and the model that they name."""

import argparse
import math
from collections.abc import Iterable

from model.zoo import ModelInfo, resolve
from service.settings import PREFIX, Settings

MODEL_SETTINGS = ("model", "revision", "cache_dir", "offline")


def add_settings_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Give `parser` a flag for each named setting; a flag that is left out parses to None."""
    for name in names:
        field = Settings.model_fields[name]
        default = "" if field.default is None else f"default: {field.default}; "
        text = f"{field.description} ({default}{PREFIX}{name.upper()})"
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            boolean = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=boolean, default=None, help=text)
        else:
            metavar = "N" if field.annotation is int else name.rpartition("_")[2].upper()
            parser.add_argument(flag, metavar=metavar, help=text)


def positive_int(text: str) -> int:
    """Parse a flag's whole number of at least 1; argparse shows the message."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a flag's number above 0; argparse shows the message."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def describe_models(settings: Settings) -> list[ModelInfo]:
    """Return what is known of the models that `settings` name, without their weights.

    Raises: CheckpointError says what is wrong and what to do.
    """
    return [
        resolve(
            name,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            offline=settings.offline,
        )
        for name in settings.model_names
    ]


def find_model(settings: Settings) -> ModelInfo:
    """Return the model that `settings` names, downloaded if it is published and not here.

    Raises: CheckpointError says what is wrong and what to do.
    """
    name, revision, cache_dir = settings.model, settings.revision, settings.cache_dir
    info = resolve(name, revision=revision, cache_dir=cache_dir, offline=settings.offline)
    if info.directory is not None:
        return info
    # Torch, which converts the download, is loaded only where there is something to convert.
    from model.conversion import install  # noqa: PLC0415

    return install(name, revision=revision, cache_dir=cache_dir, offline=settings.offline)
