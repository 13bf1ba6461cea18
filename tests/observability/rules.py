"""The alert rules, the dashboard and the metrics that they speak of, for the tests beside."""

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "bar.json"
MAKE_DASHBOARD = ROOT / "docker" / "grafana" / "make_dashboard.py"

# Metrics in an expression, not the labels, functions and words around them.
_METRIC = re.compile(r"\b(?:bar|http|process|python)_\w+|\bbar:[\w:]+|\b(?:up|ALERTS)\b")
_TEXT = re.compile(r'"[^"]*"')


def promtool() -> str:
    """Return the path of promtool; the test is skipped where there is none."""
    if found := shutil.which("promtool"):
        return found
    pytest.skip("needs promtool on the PATH: apt-get install prometheus")


def rules() -> Iterator[dict[str, Any]]:
    """Yield each rule of every group."""
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """Return the rules that are alerts."""
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    """Return the committed dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def made_dashboard() -> Any:
    """Return what the dashboard's source makes."""
    return runpy.run_path(str(MAKE_DASHBOARD))["dashboard"]()


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's graphs, without the headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield each panel's title with each of its expressions, their variables filled in."""
    values = {"$__rate_interval": "1m", "$namespace": ".*", "$model_name": ".*"}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    return set(_METRIC.findall(_TEXT.sub("", expression)))
