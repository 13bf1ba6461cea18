"""What is rendered fits the real schemas: of Kubernetes, of KEDA, of the Prometheus operator.

Kubernetes refuses or silently drops a field that it does not know; here every one is an error.
"""

import copy
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from tests.k8s.manifests import K8S, OVERLAYS, Manifest, Overlay, render

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: `sleep` before a stop came with 1.30
CUSTOM = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
# It reads a file of a megabyte for every manifest, over and over.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)
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


def test_every_component_fits_on_top_of_an_installation(tmp_path: Path) -> None:
    """Also what no overlay uses: each component can be added to the GPU overlay, and is valid."""
    used = {path.name for path in (K8S / "components").iterdir()}
    for name in used:
        folder = tmp_path / name
        folder.mkdir()
        kustomization = {
            "resources": [os.path.relpath(K8S / "overlays" / "gpu", folder)],
            "components": [os.path.relpath(K8S / "components" / name, folder)],
            "namespace": "bar-serve",
        }
        if name == "monitoring":  # which the overlay has already
            kustomization["resources"] = [os.path.relpath(K8S / "base", folder)]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
        for manifest in render(folder):
            check(manifest, NEWEST)


def test_no_two_manifests_are_the_same_object() -> None:
    """Within an installation kind, namespace and name are given once."""
    for name in OVERLAYS:
        keys = [
            (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"])
            for m in Overlay(name).manifests
        ]
        assert len(keys) == len(set(keys))
