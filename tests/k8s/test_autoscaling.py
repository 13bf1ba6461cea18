"""What scales the workers: it asks for what is recorded, of the model that is served."""

import re

import pytest
import yaml

from service.engine_loader import GPU_SLOTS
from tests.k8s.manifests import K8S, Manifest, Overlay
from tests.observability.rules import rules

RECORDED = {rule["record"] for rule in rules() if "record" in rule}
KEDA, HPA = Overlay("autoscaled"), Overlay("autoscaled-hpa")


def settings_of(overlay: Overlay) -> Manifest:
    """Return the settings that API and workers share."""
    (found,) = (m["data"] for m in overlay.of("ConfigMap") if "BAR_MODEL" in m["data"])
    settings: Manifest = found
    return settings


def test_keda_asks_for_the_recorded_demand_of_the_served_model() -> None:
    """Its query is of a recording rule, of this namespace, of the model that workers load."""
    (scaler,) = KEDA.of("ScaledObject")
    (trigger,) = scaler["spec"]["triggers"]
    found = re.fullmatch(r"([\w:]+)\{(.*)\}", trigger["metadata"]["query"])
    assert found
    assert found[1] in RECORDED
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2]))
    assert {
        "namespace": scaler["metadata"]["namespace"],
        "model_name": settings_of(KEDA)["BAR_MODEL"],
    } == labels


def test_a_worker_is_wanted_for_each_full_set_of_slots() -> None:
    """Both autoscalers divide what is wanted by the slots that a worker has on a GPU."""
    (scaler,) = KEDA.of("ScaledObject")
    assert str(GPU_SLOTS) == scaler["spec"]["triggers"][0]["metadata"]["threshold"]
    metric = HPA.find("HorizontalPodAutoscaler", "bar-worker")["spec"]["metrics"][0]["external"]
    assert {"type": "AverageValue", "averageValue": str(GPU_SLOTS)} == metric["target"]


def test_workers_go_to_zero_and_come_back_only_with_keda() -> None:
    """KEDA may end the last worker, and anything that is wanted wakes one; the other keeps one."""
    (scaler,) = KEDA.of("ScaledObject")
    assert 0 == scaler["spec"]["minReplicaCount"]
    assert "0" == scaler["spec"]["triggers"][0]["metadata"]["activationThreshold"]
    assert 1 == HPA.find("HorizontalPodAutoscaler", "bar-worker")["spec"]["minReplicas"]


def test_refusals_that_wake_a_worker_are_remembered_until_it_may_be_asked() -> None:
    """Demand that was refused counts for longer than it takes to be scraped and polled, and a woken
    worker is not ended again before it is forgotten."""
    (rule,) = (r for r in rules() if r.get("record") == "bar:images_wanted")
    (minutes,) = re.findall(r"not_ready\"\}\[(\d+)m\]", rule["expr"])
    (scaler,) = KEDA.of("ScaledObject")
    scrape_s = int(KEDA.of("ServiceMonitor")[0]["spec"]["endpoints"][0]["interval"].rstrip("s"))
    assert 60 * int(minutes) > 2 * scrape_s + scaler["spec"]["pollingInterval"]
    assert scaler["spec"]["cooldownPeriod"] > 60 * int(minutes)


def test_a_vanished_metric_scales_nothing() -> None:
    """Without Prometheus nobody is ended for lack of demand."""
    (scaler,) = KEDA.of("ScaledObject")
    assert "false" == scaler["spec"]["triggers"][0]["metadata"]["ignoreNullValues"]
    assert "fallback" not in scaler["spec"]


def test_the_adapter_offers_what_the_autoscaler_asks_for() -> None:
    """prometheus-adapter makes the external metric from the recorded one."""
    values = yaml.safe_load(
        (K8S / "overlays" / "autoscaled-hpa" / "prometheus-adapter.yaml").read_text("utf-8")
    )
    (rule,) = values["rules"]["external"]
    metric = HPA.find("HorizontalPodAutoscaler", "bar-worker")["spec"]["metrics"][0]["external"]
    assert metric["metric"]["name"] == rule["name"]["as"]
    assert metric["metric"]["selector"]["matchLabels"] == {
        "model_name": settings_of(HPA)["BAR_MODEL"]
    }
    (series,) = re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])
    assert series in RECORDED


@pytest.mark.parametrize("overlay", [KEDA, HPA], ids=lambda overlay: overlay.name)
def test_workers_leave_one_at_a_time_and_come_at_once(overlay: Overlay) -> None:
    """Growth is not held back; shrinking waits for five quiet minutes and takes one each."""
    if overlay is KEDA:
        advanced = overlay.of("ScaledObject")[0]["spec"]["advanced"]
        behavior = advanced["horizontalPodAutoscalerConfig"]["behavior"]
    else:
        behavior = overlay.find("HorizontalPodAutoscaler", "bar-worker")["spec"]["behavior"]
    assert 0 == behavior["scaleUp"]["stabilizationWindowSeconds"]
    assert 300 <= behavior["scaleDown"]["stabilizationWindowSeconds"]
    assert [1] == [policy["value"] for policy in behavior["scaleDown"]["policies"]]
