"""What is rendered fits the real schemas: of Kubernetes, of KEDA, of the Prometheus operator.

Kubernetes refuses or silently drops a field that it does not know; here every one is an error.
"""

import copy
import importlib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.k8s.manifests import K8S, OVERLAYS, Manifest, Overlay, render

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: `sleep` before a stop came with 1.30
CUSTOM = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
FOLDERS = [K8S / "base", *(K8S / "overlays" / name for name in OVERLAYS)]


def check(manifest: Manifest, version: str) -> None:
    """Raise unless a manifest fits its schema, every field of it."""
    if (module := CUSTOM.get(manifest["apiVersion"])) is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    kind: Any = getattr(importlib.import_module(module), manifest["kind"])
    read = kind.model_validate(manifest)
    # The models leave out what they do not know; so what comes back shows what was unknown.
    known = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert manifest == known, f"{manifest['kind']} has fields that its schema does not know"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_everything_fits_its_schema(folder: Path, version: str) -> None:
    """Every rendered manifest is valid for the oldest and the newest supported Kubernetes."""
    manifests = render(folder)
    assert manifests
    for manifest in manifests:
        check(manifest, version)


@pytest.mark.parametrize(
    ("overlay", "kind", "path"),
    [
        ("dev", "Deployment", ("spec", "template", "spec", "terminationGracePeriod")),
        ("autoscaled", "ScaledObject", ("spec", "minReplicas")),
        ("gpu", "PodMonitor", ("spec", "podMetricsEndpoint")),
        ("gpu", "PrometheusRule", ("spec", "group")),
    ],
)
def test_a_field_of_another_name_is_noticed(overlay: str, kind: str, path: tuple[str, ...]) -> None:
    """The check refuses a field that is almost right, of each of the three schemas."""
    manifest = copy.deepcopy(Overlay(overlay).of(kind)[0])
    check(manifest, NEWEST)
    *parents, last = path
    target = manifest
    for name in parents:
        target = target[name]
    target[last] = 1
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        check(manifest, NEWEST)


def test_no_two_manifests_are_the_same_object() -> None:
    """Within an installation kind, namespace and name are given once."""
    for name in OVERLAYS:
        keys = [
            (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"])
            for m in Overlay(name).manifests
        ]
        assert len(keys) == len(set(keys))
