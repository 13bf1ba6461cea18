"""docker/compose.yaml as Docker Compose would read it, without Docker."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.docker.dockerfile import ROOT

FOLDER = ROOT / "docker"
FILE = FOLDER / "compose.yaml"
KEYS = FOLDER / "compose.keys.yaml"

Service = dict[str, Any]

_VARIABLE = re.compile(r"\$\{(?P<name>\w+):(?P<kind>[-+])(?P<word>(?:\$\{\w+\}|[^}])*)\}")


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Fill in `${NAME:-default}` and `${NAME:+text}`; NAME itself may stand in the text."""

    def replace(match: re.Match[str]) -> str:
        value = environ.get(match["name"], "")
        if match["kind"] == "-":
            return value or match["word"]
        return match["word"].replace(f"${{{match['name']}}}", value) if value else ""

    return _VARIABLE.sub(replace, text)


def services(**environ: str) -> dict[str, Service]:
    """Read the services with their variables filled in from `environ`."""
    text = interpolate(FILE.read_text("utf-8"), environ)
    found: dict[str, Service] = yaml.safe_load(text)["services"]
    return found


def seconds(text: str) -> float:
    """Read a duration of one unit."""
    number, unit = text[:-1], text[-1]
    return float(number) * {"s": 1, "m": 60}[unit]
