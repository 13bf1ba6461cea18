"""Rules of our own that every installation under k8s/ keeps, whatever a schema allows."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from service import __version__
from service.server import CLOSING_S
from service.settings import PREFIX, Settings
from tests.k8s.manifests import (
    OVERLAYS,
    Manifest,
    Overlay,
    containers,
    port_number,
    probes,
    selects,
)

MARGIN_S = 5  # of a grace period beyond what its parts add up to

pytestmark = pytest.mark.parametrize("overlay", [Overlay(name) for name in OVERLAYS], ids=OVERLAYS)


def settings_of(overlay: Overlay, container: Manifest) -> Settings:
    """Read a container's environment as the process in it would."""
    environ = overlay.environment(container)
    if "BAR_REDIS_URL" in environ:
        environ["BAR_REDIS_URL"] = "redis://somewhere:6379/0"
    return Settings.load(environ=environ)


def test_every_variable_is_a_setting(overlay: Overlay) -> None:
    """Each container's BAR_ variables are settings, with values that the service accepts."""
    for _, pod in overlay.our_pods():
        for container in containers(pod):
            settings = settings_of(overlay, container)
            assert "0.0.0.0" == settings.host
            assert all(
                name.removeprefix(PREFIX).lower() in Settings.model_fields
                for name in overlay.environment(container)
                if name.startswith(PREFIX)
            )


def test_services_announce_no_variables(overlay: Overlay) -> None:
    """No pod gets variables of Services: BAR_API_PORT would be refused as an unknown setting."""
    assert all(pod["enableServiceLinks"] is False for _, pod in overlay.pods())


def test_grace_periods_outlast_the_drain(overlay: Overlay) -> None:
    """A pod is killed only after preStop, the service's own grace time, and some seconds more."""
    for name, pod in overlay.our_pods():
        (container,) = pod["containers"]
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        needed_s = pause_s.get("seconds", 0) + settings_of(overlay, container).shutdown_grace_s
        needed_s += CLOSING_S if name == "bar-api" else 0
        assert needed_s + MARGIN_S <= pod["terminationGracePeriodSeconds"], name


def test_api_leaves_the_service_before_it_stops(overlay: Overlay) -> None:
    """The API goes on serving while proxies take it off their lists; workers need no such pause."""
    pods = dict(overlay.our_pods())
    assert pods["bar-api"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5
    assert "lifecycle" not in pods["bar-worker"]["containers"][0]


def test_probes_ask_the_ports_that_are_listened_to(overlay: Overlay) -> None:
    """Probes go to the port that the container's settings open."""
    for name, pod in overlay.our_pods():
        (container,) = pod["containers"]
        settings = settings_of(overlay, container)
        listened: Any = settings.port if name == "bar-api" else settings.worker_port
        assert {"startupProbe", "livenessProbe", "readinessProbe"} == set(probes(container))
        for probe in probes(container).values():
            assert listened == port_number(container, probe["httpGet"]["port"])


def test_start_is_given_the_time_that_it_takes(overlay: Overlay) -> None:
    """A worker may load for ten minutes before anybody loses patience; an API for half a one."""
    patience_s = {
        name: probe["periodSeconds"] * probe["failureThreshold"]
        for name, pod in overlay.our_pods()
        for probe in [pod["containers"][0]["startupProbe"]]
    }
    assert patience_s["bar-worker"] >= 600
    assert patience_s["bar-api"] >= 30


def test_a_stalled_worker_ends_itself_before_it_is_killed(overlay: Overlay) -> None:
    """The liveness probe is slower than the worker's own end, which hands its jobs on at once."""
    (container,) = dict(overlay.our_pods())["bar-worker"]["containers"]
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) >= 10


def test_everything_is_requested_and_bounded(overlay: Overlay) -> None:
    """Every container asks for processor and memory, and has a limit of memory and of disk."""
    for name, pod in overlay.pods():
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"]), name
            assert {"memory", "ephemeral-storage"} <= set(resources["limits"]), name


def test_nothing_runs_with_privileges(overlay: Overlay) -> None:
    """No root, no writable root file system, no capability, the run time's seccomp profile."""
    for name, pod in overlay.pods():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 100, name
        assert {"type": "RuntimeDefault"} == security["seccompProfile"], name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
        for container in containers(pod):
            assert {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            } == container["securityContext"], name


def test_the_namespace_enforces_the_same(overlay: Overlay) -> None:
    """The cluster itself refuses a pod that would run with privileges."""
    (namespace,) = overlay.of("Namespace")
    assert "restricted" == namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    name = namespace["metadata"]["name"]
    cluster_wide = {"Namespace", "PriorityClass"}
    for manifest in overlay.manifests:
        if manifest["kind"] not in cluster_wide:
            assert name == manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def test_nobody_holds_a_token_of_the_cluster(overlay: Overlay) -> None:
    """No pod can speak to Kubernetes, whose service accounts have no rights anyway."""
    assert all(pod["automountServiceAccountToken"] is False for _, pod in overlay.pods())
    assert all(a["automountServiceAccountToken"] is False for a in overlay.of("ServiceAccount"))
    accounts = {account["metadata"]["name"] for account in overlay.of("ServiceAccount")}
    assert accounts == {pod["serviceAccountName"] for _, pod in overlay.our_pods()}


def test_only_declared_folders_are_written(overlay: Overlay) -> None:
    """What may be written is a volume with a bound, and models are written by downloads alone."""
    for name, pod in overlay.our_pods():
        for volume in pod["volumes"]:
            if volume["name"] == "tmp":
                assert volume["emptyDir"]["sizeLimit"], name
        for container in pod["containers"]:
            mounts = {mount["name"]: mount.get("readOnly") for mount in container["volumeMounts"]}
            assert None is mounts.pop("tmp"), name
            assert all(mounts.values()), name


def test_images_are_pinned(overlay: Overlay) -> None:
    """Every image has an exact version; ours is the version of this source."""
    for name, pod in overlay.pods():
        for container in containers(pod):
            image, _, tag = container["image"].rpartition(":")
            assert re.match(r"v?\d+\.\d+\.\d+", tag), container["image"]
            if name in ("bar-api", "bar-worker"):
                assert image.startswith("bar-serve-")
                assert __version__ == tag


def test_selectors_select_what_they_mean(overlay: Overlay) -> None:
    """Each deployment, service, budget and spread selects the pods of one deployment."""
    labels = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["labels"]
        for deployment in overlay.of("Deployment")
    }

    def selected(selector: Manifest) -> list[str]:
        return [name for name, found in labels.items() if selects(selector, found)]

    for deployment in overlay.of("Deployment"):
        name = deployment["metadata"]["name"]
        pod = deployment["spec"]["template"]["spec"]
        assert [name] == selected(deployment["spec"]["selector"])
        for constraint in pod.get("topologySpreadConstraints", ()):
            assert [name] == selected(constraint["labelSelector"])
    for service in overlay.of("Service"):
        assert [service["metadata"]["name"]] == selected(
            {"matchLabels": service["spec"]["selector"]}
        )
    for budget in overlay.of("PodDisruptionBudget"):
        assert [budget["metadata"]["name"]] == selected(budget["spec"]["selector"])
    for policy in overlay.of("NetworkPolicy"):
        assert selected(policy["spec"]["podSelector"]), policy["metadata"]["name"]


def test_services_lead_to_ports(overlay: Overlay) -> None:
    """Services and scrapers name ports that the containers have."""
    pods = dict(overlay.pods())
    for service in overlay.of("Service"):
        (container,) = pods[service["metadata"]["name"]]["containers"]
        for port in service["spec"]["ports"]:
            assert port_number(container, port["targetPort"])
    ports = {
        port["name"]: port["port"] for port in overlay.find("Service", "bar-api")["spec"]["ports"]
    }
    settings = settings_of(overlay, pods["bar-api"]["containers"][0])
    for monitor in overlay.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            assert settings.metrics_port == ports[endpoint["port"]]
    for monitor in overlay.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            (container,) = pods["bar-worker"]["containers"]
            assert 9100 == port_number(container, endpoint["port"])


def test_drains_are_never_stuck(overlay: Overlay) -> None:
    """However few replicas there are, one may be evicted, and broken ones always."""
    for budget in overlay.of("PodDisruptionBudget"):
        spec = budget["spec"]
        assert "minAvailable" not in spec
        assert spec["maxUnavailable"] not in (0, "0%")
        assert "AlwaysAllow" == spec["unhealthyPodEvictionPolicy"]
    names = {budget["metadata"]["name"] for budget in overlay.of("PodDisruptionBudget")}
    assert {"bar-api", "bar-worker"} == names


def test_no_secret_is_written_down(overlay: Overlay) -> None:
    """A manifest holds no secret: those are made in the cluster. dev's address has no password."""
    for secret in overlay.of("Secret"):
        assert "dev" == overlay.name
        assert {"bar-redis"} == {secret["metadata"]["name"].rpartition("-")[0]}
    for pod in (pod for _, pod in overlay.our_pods()):
        for container in containers(pod):
            environ = overlay.environment(container)
            url = environ.get("BAR_REDIS_URL", "secret://")
            assert url.startswith("secret://"), url
            assert not any("PASSWORD" in name or "API_KEY_HASHES" in name for name in environ)
            assert urlsplit(url).password is None


def test_traffic_is_denied_unless_it_is_named(overlay: Overlay) -> None:
    """Everything is refused to every pod of the namespace, in both directions, to begin with."""
    deny = overlay.find("NetworkPolicy", "bar-default-deny")["spec"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} == deny
    for policy in overlay.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"], "open to everybody"
            assert rule["ports"], "open on every port"
        for rule in policy["spec"].get("egress", ()):
            assert rule["to"], "open to everybody"
            assert rule["ports"], "open on every port"


def test_no_pod_reaches_the_metadata_server(overlay: Overlay) -> None:
    """Where the Internet is open for downloads, private addresses and the cloud's own are not."""
    for policy in overlay.of("NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                if block["cidr"] == "0.0.0.0/0":
                    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(block["except"])


def test_a_scaled_deployment_says_no_number(overlay: Overlay) -> None:
    """Whoever applies the manifests again does not undo what an autoscaler did."""
    scaled = {
        scaler["spec"]["scaleTargetRef"]["name"]
        for scaler in overlay.of("ScaledObject", "HorizontalPodAutoscaler")
    }
    for deployment in overlay.of("Deployment"):
        is_scaled = deployment["metadata"]["name"] in scaled
        assert is_scaled == ("replicas" not in deployment["spec"])
