"""What `kubectl kustomize` makes of the folder k8s/, as objects that tests can ask."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())

Manifest = dict[str, Any]


def kustomize() -> list[str]:
    """Return the command that renders a folder; the test is skipped where there is none."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    pytest.skip("needs kubectl or kustomize on the PATH: apt-get install kubernetes-client")


@functools.cache
def render(folder: Path) -> tuple[Manifest, ...]:
    """Return the manifests of a folder with a kustomization."""
    done = subprocess.run(
        [*kustomize(), str(folder)], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@dataclass(frozen=True)
class Overlay:
    """One installation."""

    name: str

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        return render(K8S / "overlays" / self.name)

    def of(self, *kinds: str) -> list[Manifest]:
        """Return the manifests of some kinds."""
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def find(self, kind: str, name: str) -> Manifest:
        """Return the one manifest of that kind and name."""
        (found,) = (m for m in self.of(kind) if m["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Yield each deployment's name and its pod's specification."""
        for deployment in self.of("Deployment"):
            yield deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]

    def our_pods(self) -> Iterator[tuple[str, Manifest]]:
        """Yield the pods that run this software."""
        yield from ((name, pod) for name, pod in self.pods() if name in ("bar-api", "bar-worker"))

    def environment(self, container: Manifest) -> dict[str, str]:
        """Return the variables that a container will see; a secret stands as its own name."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            variables |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            variables[variable["name"]] = (
                f"secret://{reference['name']}/{reference['key']}"
                if reference
                else variable["value"]
            )
        return variables


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod, those that run first included."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def probes(container: Manifest) -> dict[str, Manifest]:
    """Return a container's probes by name."""
    names = ("startupProbe", "livenessProbe", "readinessProbe")
    return {name: container[name] for name in names if name in container}


def port_number(container: Manifest, port: int | str) -> int:
    """Return a container's port by its name or number."""
    ports = {p.get("name"): p["containerPort"] for p in container.get("ports", ())}
    return port if isinstance(port, int) else int(ports[port])


def selects(selector: Manifest, labels: Manifest) -> bool:
    """Say whether a selector of labels selects `labels`."""
    assert set(selector) <= {"matchLabels"}, selector
    wanted: Manifest = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
