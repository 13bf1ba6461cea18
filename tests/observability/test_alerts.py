"""The alert rules: they are valid, fire when they should, and lead to what to do."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.k8s.alert_rules import OBJECT, rule_object
from tests.observability.rules import ROOT, RULES, alerts, promtool, rules

CASES = Path(__file__).parent / "alerts.test.yml"
PROMETHEUS = ROOT / "docker" / "prometheus" / "prometheus.yml"


def run(*args: str) -> None:
    """Run promtool, which finds nothing wrong."""
    done = subprocess.run([promtool(), *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def headings() -> list[str]:
    """Return the headings of the runbooks' document that are one word."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    return re.findall(r"^#+ (\w+)$", text, re.MULTILINE)


def test_configuration_and_rules_are_valid() -> None:
    """Prometheus accepts the scrape configuration with the rules that it includes."""
    run("check", "config", str(PROMETHEUS))


def test_alerts_fire_when_they_should() -> None:
    """Every case holds: what is wrong fires, with its text, and what is well does not."""
    run("test", "rules", str(CASES))


def test_every_alert_has_a_case() -> None:
    """No alert is only written: each one is seen to fire with labels and text."""
    cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    fired = {
        test["alertname"]
        for case in cases
        for test in case.get("alert_rule_test", ())
        if test["exp_alerts"]
    }
    assert {alert["alert"] for alert in alerts()} == fired


def test_the_operator_gets_the_same_rules() -> None:
    """The object for the Prometheus operator holds what Prometheus reads from the file."""
    assert rule_object() == yaml.safe_load(OBJECT.read_text("utf-8")), (
        "run `python -m tests.k8s.alert_rules`"
    )


def test_every_alert_leads_to_its_runbook() -> None:
    """An alert has a severity, a text, and a section in docs/operations.md that its link names."""
    anchors = {f"docs/operations.md#{heading.lower()}" for heading in headings()}
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
        assert f"docs/operations.md#{alert['alert'].lower()}" == alert["annotations"]["runbook_url"]
        assert alert["annotations"]["runbook_url"] in anchors, alert["alert"]


def test_every_runbook_is_of_an_alert() -> None:
    """Headings that look like alerts are alerts: none is left over from one that went."""
    named = {heading for heading in headings() if heading.startswith("Bar")}
    assert {alert["alert"] for alert in alerts()} == named


def test_levels_of_the_queue_are_not_summed_across_replicas() -> None:
    """Every API tells the same of the queue: adding them up would count it once for each."""
    summed = re.compile(
        r"sum [^()]*\([^()]*\) \((?:increase\(|rate\()?"
        r"bar_(?:jobs|images_(?:waiting|running)|oldest|queued|queue_limit|workers|slots|dead|redeliv)"
    )
    assert not summed.search(RULES.read_text("utf-8"))
    assert summed.search("sum by (model_name) (bar_images_waiting)")
    assert list(rules())
