"""`bar keys`: makes API keys, lists what is kept of them, revokes them.

A key is printed once, alone on standard output, and nowhere kept; what is said about it goes to
standard error. A running server takes changes over within a second.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.api_keys import MOST_JOBS, MOST_REQUESTS_PER_MINUTE, ApiKey, Name, hash_of, make_key
from service.errors import BarError
from service.key_file import editing, load
from service.settings import PREFIX, Settings

DURATION = re.compile(r"(\d{1,6})([hd])")
HOURS = {"h": 1, "d": 24}


def main(argv: Sequence[str]) -> int:
    """Make, list or revoke keys.

    Raises: BarError says in one line what is wrong.
    """
    options = _parser().parse_args(argv)
    file = Settings.load({"api_keys_file": options.file}).api_keys_file
    if options.action == "create":
        _create(options, file)
    elif file is None:
        raise BarError(f"which keys? Give --file, or set {PREFIX}API_KEYS_FILE")
    elif options.action == "list":
        _list(file)
    else:
        _revoke(options.name, options.id, file)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bar keys", description="Make and revoke API keys.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", type=_name, metavar="NAME", help="whose key it is")
    create.add_argument(
        "--expires", type=_time, metavar="WHEN", help="30d, 12h, or a date such as 2030-12-31 (UTC)"
    )
    create.add_argument(
        "--requests-per-minute",
        type=_rate,
        metavar="N",
        help="a limit of its own, instead of the server's; 0 is none",
    )
    create.add_argument(
        "--max-jobs",
        type=_num_jobs,
        metavar="N",
        help="unfinished jobs that its owner may have, instead of the server's number",
    )
    revoke = actions.add_parser("revoke", help="revoke the keys of a name, or one of them")
    revoke.add_argument("name", metavar="NAME", help="whose keys")
    revoke.add_argument("--id", help="only this one, as `bar keys list` shows it")
    for action in (
        create,
        actions.add_parser("list", help="show the keys' names and ends"),
        revoke,
    ):
        action.add_argument(
            "--file", type=Path, help=f"file of the keys (default: {PREFIX}API_KEYS_FILE)"
        )
    return parser


def _name(text: str) -> str:
    try:
        return TypeAdapter[str](Name).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None


def _rate(text: str) -> int:
    return _whole(text, 0, MOST_REQUESTS_PER_MINUTE)


def _num_jobs(text: str) -> int:
    return _whole(text, 1, MOST_JOBS)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {least} to {most}, got {text!r}"
        )
    return int(text)


def _time(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        if duration := DURATION.fullmatch(text):
            when = now + timedelta(hours=int(duration[1]) * HOURS[duration[2]])
        else:
            when = datetime.fromisoformat(text)
            when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"must be like 30d, 12h or 2030-12-31, got {text!r}"
        ) from None
    if when <= now:
        raise argparse.ArgumentTypeError(f"{text!r} is over already")
    return when


def _create(options: argparse.Namespace, file: Path | None) -> None:
    text = make_key()
    key = ApiKey(
        name=options.name,
        sha256=hash_of(text),
        created=datetime.now(UTC).replace(microsecond=0),
        expires=options.expires,
        requests_per_minute=options.requests_per_minute,
        max_jobs=options.max_jobs,
    )
    if file is not None:
        with editing(file) as keys:
            keys.append(key)
        stored = f"its hash is in {file}"
    elif any((key.expires, key.requests_per_minute is not None, key.max_jobs)):
        raise BarError("a key with an end or a limit needs a file: give --file")
    else:
        stored = f"to let it in, add to {PREFIX}API_KEY_HASHES: {key.name}={key.sha256}"
    print(text)
    print(f"This is the only copy of {key.name}'s key {key.id}; {stored}", file=sys.stderr)


def _list(file: Path) -> None:
    rows = [("NAME", "ID", "CREATED", "EXPIRES", "PER MINUTE", "JOBS"), *map(_row, load(file))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(key: ApiKey) -> tuple[str, ...]:
    end = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}"
    return (
        key.name,
        key.id,
        f"{key.created:%Y-%m-%d %H:%M}" if key.created else "-",
        f"{end} (over)" if key.has_expired() else end,
        "-" if key.requests_per_minute is None else str(key.requests_per_minute),
        "-" if key.max_jobs is None else str(key.max_jobs),
    )


def _revoke(name: str, key_id: str | None, file: Path) -> None:
    with editing(file) as keys:
        revoked = [key for key in keys if key.name == name and key_id in (None, key.id)]
        if not revoked:
            which = f"{name}'s key {key_id}" if key_id else f"a key of {name}"
            raise BarError(f"{which} is not in {file}")
        for key in revoked:
            keys.remove(key)
    print(f"revoked {len(revoked)} of {name}: {', '.join(key.id for key in revoked)}")
