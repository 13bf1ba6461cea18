"""Facts of docker/compose.yaml: what it starts, and what it keeps from harm."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service import __version__
from service.commands.health import main as health
from service.server import CLOSING_S
from service.settings import PREFIX, Settings
from tests.docker.compose import FILE, FOLDER, KEYS, Service, seconds, services
from tests.docker.dockerfile import DOCKERFILE, ROOT, Dockerfile

IMAGES = Dockerfile(DOCKERFILE.read_text("utf-8"))
SERVICES = ["redis", "api", "worker", "worker-gpu", "prometheus", "grafana"]
OURS = ["api", "worker", "worker-gpu"]

each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)


def environment(service: Service) -> dict[str, str]:
    """Name what a container starts with: its image's variables, and those of the file."""
    given = {name: value for name, value in service["environment"].items() if value is not None}
    return {**IMAGES.environment(service["build"]["target"]), **given}


def settings_of(name: str, **environ: str) -> Settings:
    """Read the settings that the process in a container has."""
    return Settings.load(environ=environment(services(**environ)[name]))


def test_it_has_the_whole_service() -> None:
    """Queue, API, workers, metrics and dashboards; by default none that needs a GPU."""
    found = services()
    assert SERVICES == list(found)
    assert {"worker-gpu": ["gpu"]} == {
        name: each["profiles"] for name, each in found.items() if "profiles" in each
    }


@pytest.mark.parametrize("file", [FILE, KEYS], ids=["compose", "keys"])
def test_the_format_is_that_of_the_specification(file: Path) -> None:
    """The file follows the schema that the Compose project publishes."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("more", [[], ["-f", KEYS, "--profile", "gpu"]], ids=["plain", "all"])
def test_docker_compose_takes_it(more: list[str | Path]) -> None:
    """Compose itself, where it is installed, resolves the file."""
    if subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs Docker's Compose plugin, 2.20 or newer (docker-compose-plugin)")
    command = ["docker", "compose", "-f", FILE, *more, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@each_service
def test_nothing_is_more_than_it_must_be(name: str) -> None:
    """No root, no capabilities, nothing to gain by set-user-id, no file system to write to."""
    service = services()[name]
    assert service["read_only"] is True
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode"} & service.keys()
    user = service.get("user") or IMAGES.last(service["build"]["target"], "USER").text
    assert re.fullmatch(r"[1-9]\d*:\d+", user)


@each_service
def test_nothing_takes_more_than_its_share(name: str) -> None:
    """Memory and processes are bounded, and so are the logs."""
    service = services()[name]
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert {"max-size", "max-file"} == service["logging"]["options"].keys()


@each_service
def test_versions_are_named(name: str) -> None:
    """No image is `latest`, and those made here have the version that is made."""
    image, _, tag = services()[name]["image"].partition(":")
    assert re.match(r"v?\d+\.\d+\.\d+", tag), image
    if name in OURS:
        assert __version__ == tag
        assert services()[name]["build"]["target"] in IMAGES.targets


@each_service
def test_only_this_machine_can_reach_it(name: str) -> None:
    """Ports are published on loopback; Redis and the workers publish none."""
    ports = services()[name].get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name in {"api", "prometheus", "grafana"})


def test_redis_is_reached_by_api_and_workers_alone() -> None:
    """Nobody else is on its network, which leads nowhere."""
    networks = yaml.safe_load(FILE.read_text("utf-8"))["networks"]
    assert {"internal": True} == networks["queue"]
    on_it = {name for name, each in services().items() if "queue" in each["networks"]}
    assert {"redis", *OURS} == on_it
    assert ["queue"] == services()["redis"]["networks"]


def test_redis_loses_nothing_it_was_given() -> None:
    """It never evicts, writes what it is told to a volume, and has less than its container."""
    redis = services()["redis"]
    flags = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert "noeviction" == flags["--maxmemory-policy"]
    assert "yes" == flags["--appendonly"]
    assert ["queue:/data"] == redis["volumes"]
    limit = int(redis["deploy"]["resources"]["limits"]["memory"].removesuffix("M"))
    assert 2 * int(flags["--maxmemory"].removesuffix("mb")) <= limit


@each_of_ours
def test_every_variable_is_a_setting(name: str) -> None:
    """The BAR_ variables are accepted by the service, and reach the process that they mean."""
    settings = settings_of(name)
    assert "redis://redis:6379/0" == settings.redis_url
    if name == "api":
        assert f"127.0.0.1:8000:{settings.port}" in services()["api"]["ports"]
        assert settings.insecure_no_keys
    else:
        assert 9100 == settings.worker_port
    named = {variable for variable in services()[name]["environment"] if PREFIX in variable}
    assert {
        variable.removeprefix(PREFIX).lower() for variable in named
    } <= Settings.model_fields.keys()


def test_queue_settings_are_the_same_everywhere() -> None:
    """API and workers obey the same numbers: the anchor that they share has them all."""
    shared = ("lease_s", "max_queued_steps", "max_owner_jobs", "result_ttl_s", "redis_url")
    seen = {tuple(getattr(settings_of(name), each) for each in shared) for name in OURS}
    assert 1 == len(seen)


def test_digits_by_default_and_a_gpu_model_by_name() -> None:
    """GPU_MODEL is served beside the digits; without it everybody makes digits."""
    assert ["digits"] == settings_of("api").model_names
    assert ["digits"] == settings_of("worker-gpu").model_names
    assert ["digits", "bar-b"] == settings_of("api", GPU_MODEL="bar-b").model_names
    assert ["bar-b"] == settings_of("worker-gpu", GPU_MODEL="bar-b").model_names
    assert ["digits"] == settings_of("worker", GPU_MODEL="bar-b").model_names


def test_the_gpu_worker_may_load_what_it_compiles() -> None:
    """It has the GPU, a /tmp whose files may be executed, and keeps what it downloaded."""
    worker = services()["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert ("nvidia", ["gpu"]) == (device["driver"], device["capabilities"])
    assert ["/tmp:exec"] == worker["tmpfs"]
    assert ["models:/models"] == worker["volumes"]
    assert Path("/models") == settings_of("worker-gpu").cache_dir


@each_of_ours
def test_it_is_given_the_time_to_finish(name: str) -> None:
    """Docker kills only after the service's own grace time, and some seconds more."""
    needed_s = settings_of(name).shutdown_grace_s + (CLOSING_S if name == "api" else 0)
    assert needed_s + 5 <= seconds(services()[name]["stop_grace_period"])


@each_service
def test_health_is_asked_without_a_shell(name: str) -> None:
    """Every service has a health check that starts soon, and needs no shell and no curl."""
    check = services()[name]["healthcheck"]
    assert "CMD" == check["test"][0]
    assert "curl" not in check["test"]
    assert seconds(check["timeout"]) < seconds(check["interval"])
    assert seconds(check["start_interval"]) < seconds(check["interval"])


@each_of_ours
def test_up_waits_until_it_is_ready(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`up --wait` ends when requests can be answered, not when processes live."""
    _, bar, *command = services()[name]["healthcheck"]["test"]
    assert ["bar", "health", "--ready"] == [bar, command[0], command[-1]]
    with pytest.raises(SystemExit) as stop:
        health([*command[1:], "--help"])
    assert 0 == stop.value.code
    assert {"redis": {"condition": "service_healthy"}} == services()[name]["depends_on"]


@each_service
def test_what_is_mounted_is_there(name: str) -> None:
    """Files of the repository exist and are mounted read-only; volumes are declared."""
    declared = yaml.safe_load(FILE.read_text("utf-8"))["volumes"]
    for mount in services()[name].get("volumes", []):
        source, _, *mode = mount.split(":")
        if source.startswith("./"):
            assert (FOLDER / source).is_dir()
            assert ["ro"] == mode
        else:
            assert source in declared


def test_prometheus_asks_who_is_there() -> None:
    """Its configuration is where the command says, and its targets are services that answer."""
    prometheus = services()["prometheus"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in prometheus["command"]
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert all((FOLDER / "prometheus" / file).is_file() for file in config["rule_files"])
    asked = {
        (name, discovery["port"])
        for job in config["scrape_configs"]
        for discovery in job["dns_sd_configs"]
        for name in discovery["names"]
    }
    assert {
        (name, settings_of(name).metrics_port or settings_of(name).worker_port) for name in OURS
    } == asked
    assert all("front" in services()[name]["networks"] for name in [*OURS, "prometheus"])


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    """What is provisioned lies where the container mounts it, and dashboards use the source."""
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert "http://prometheus:9090" == source["url"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "bar.yaml").read_text())[
        "providers"
    ]
    mounts = dict(mount.split(":")[1::-1] for mount in services()["grafana"]["volumes"])
    assert "./grafana/dashboards" == mounts[provider["options"]["path"]]
    assert "./grafana/provisioning" == mounts["/etc/grafana/provisioning"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / "grafana" / "dashboards" / Path(home).name).is_file()


def test_nobody_logs_into_grafana() -> None:
    """There is no administrator, and no password that everyone knows."""
    variables = services()["grafana"]["environment"]
    assert "true" == variables["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]
    assert "Viewer" == variables["GF_AUTH_ANONYMOUS_ORG_ROLE"]
    assert not any("PASSWORD" in name for name in variables)


def test_keys_are_a_secret() -> None:
    """With compose.keys.yaml the API wants keys, from a file that is in no image."""
    override = yaml.safe_load(KEYS.read_text("utf-8"))
    api = override["services"]["api"]
    settings = Settings.load(environ={**environment(services()["api"]), **api["environment"]})
    (secret,) = api["secrets"]
    assert Path("/run/secrets") / secret == settings.api_keys_file
    assert not settings.insecure_no_keys
    assert "file" in override["secrets"][secret]
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "docker/keys.json" in ignored


def test_the_readme_says_the_command() -> None:
    """README.md has the command that the file's own head gives."""
    (command,) = re.findall(r"^#   (docker compose .*)$", FILE.read_text("utf-8"), re.MULTILINE)
    assert command in (ROOT / "README.md").read_text("utf-8")
