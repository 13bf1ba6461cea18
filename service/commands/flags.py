"""What the subcommands share: flags that are settings, and the model that they name."""

import argparse
import math
from collections.abc import Iterable, Mapping

from model.zoo import ModelInfo, resolve
from service.settings import PREFIX, Settings

MODEL_SETTINGS = ("model", "revision", "cache_dir", "offline")
ONE_MODEL = "a name of `bar models`, or a folder"

# Under which heading a flag stands where there are many.
SECTIONS = {
    "where it listens": ("host", "port", "metrics_port", "worker_port", "public_url"),
    "who is let in": (
        "api_keys_file", "api_key_hashes", "insecure_no_keys", "public_metrics",
        "requests_per_minute",
    ),
    "the model": MODEL_SETTINGS,
    "the engine": (
        "device", "dtype", "batch_invariant", "threads", "num_slots", "target_step_s",
        "canary_interval_s", "stall_s",
    ),
    "the queue": ("redis_url", "max_queued_steps", "max_owner_jobs", "lease_s", "result_ttl_s"),
    "requests": (
        "max_images", "default_timeout_s", "max_timeout_s", "max_body_bytes", "max_reproduce_bytes",
    ),
    "the process": ("shutdown_grace_s", "otlp_endpoint", "trace_share", "log_level", "log_json"),
}  # fmt: skip
MANY = 8


def add_settings_flags(parser: argparse.ArgumentParser, names: Iterable[str], **words: str) -> None:
    """Give `parser` a flag for each named setting; a flag that is left out parses to None. `words`
    describe settings that mean something else here, or less, than in a server."""
    names = list(names)
    if len(names) < MANY:
        _add_flags(parser, names, words)
        return
    for title, members in SECTIONS.items():
        if chosen := [name for name in members if name in names]:
            _add_flags(parser.add_argument_group(title), chosen, words)


def _add_flags(
    group: argparse._ActionsContainer,  # what parsers and their groups both are
    names: Iterable[str],
    words: Mapping[str, str],
) -> None:
    for name in names:
        field = Settings.model_fields[name]
        default = "" if field.default is None else f"default: {field.default}; "
        text = f"{words.get(name, field.description)} ({default}{PREFIX}{name.upper()})"
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            boolean = argparse.BooleanOptionalAction
            group.add_argument(flag, action=boolean, default=None, help=text)
        else:
            metavar = "N" if field.annotation is int else name.rpartition("_")[2].upper()
            group.add_argument(flag, metavar=metavar, help=text)


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
