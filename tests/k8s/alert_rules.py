"""`python -m tests.k8s.alert_rules`: write the alert rules as the Prometheus operator reads them.

Prometheus reads docker/prometheus/alerts.yml, the operator an object that holds the same groups;
kustomize cannot make the one from the other.
"""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "alerts.yml"
OBJECT = ROOT / "k8s" / "components" / "monitoring" / "prometheus-rule.yaml"
HEADER = f"""\
# Written by `python -m tests.k8s.alert_rules` from {RULES.relative_to(ROOT)}: change them there.
"""


def rule_object() -> dict[str, Any]:
    """Return the object of the operator that holds the rules."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bar-serve"},
        "spec": yaml.safe_load(RULES.read_text("utf-8")),
    }


class _Dumper(yaml.SafeDumper):
    """Writes what has several lines as several lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


if __name__ == "__main__":
    content = yaml.dump(rule_object(), Dumper=_Dumper, sort_keys=False, width=110)
    OBJECT.write_text(HEADER + content, "utf-8")
