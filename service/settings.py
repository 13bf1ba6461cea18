"""Every setting of the service, and the only place where the environment is read.

A command-line flag wins over its environment variable (`BAR_PORT` for `port`), which wins over the
default. Each field is the single source of its flag, its variable, its help and its bounds.
A variable `BAR_…` that names no setting is refused: a typo must not silently serve the default.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import StartupError

PREFIX = "BAR_"

# What a process that answers no requests does not listen to.
API_SETTINGS = frozenset(
    {
        "port",
        "metrics_port",
        "max_images",
        "default_timeout_s",
        "max_timeout_s",
        "max_body_bytes",
        "max_reproduce_bytes",
    }
    | {"api_keys_file", "api_key_hashes", "insecure_no_keys", "public_metrics"}
    | {"requests_per_minute", "public_url"}
)


class Settings(BaseModel):
    """The settings of one process; frozen, complete and valid once constructed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    metrics_port: int | None = Field(
        None, ge=0, le=65535,
        description="port for /metrics alone, which the main port then does not answer; 0 takes a "
        "free one",
    )  # fmt: skip
    worker_port: int | None = Field(
        None, ge=0, le=65535,
        description="port of a worker's probes and metrics; 0 takes a free one, without one it "
        "answers nobody",
    )  # fmt: skip
    api_keys_file: Path | None = Field(
        None, description="file of the API keys that are let in, made by `bar keys`; may change"
    )
    api_key_hashes: str | None = Field(
        None, description="further keys, as NAME=SHA256 of the key, separated by commas"
    )
    insecure_no_keys: bool = Field(
        False, description="let others than this machine in although there are no keys"
    )
    public_metrics: bool = Field(False, description="answer /metrics without a key")
    requests_per_minute: int = Field(
        0, ge=0, le=1_000_000, description="requests for images that a key has a minute; 0: any"
    )
    model: str = Field(
        "digits",
        description="model to serve: a name of `bar models`, or a folder; an API of a queue serves "
        "several, separated by commas",
    )
    redis_url: str | None = Field(
        None, description="Redis server of the queue; without one, it is in this process's memory"
    )
    revision: str | None = Field(None, description="hub revision of the model")
    cache_dir: Path | None = Field(None, description="folder of downloaded models")
    offline: bool = Field(False, description="never use the network")
    device: str = Field("auto", description="torch device; auto is cuda where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "fp8"] = Field(
        "auto", description="what to compute in; auto is the fastest exact one, fp8 is not exact"
    )
    batch_invariant: bool = Field(
        True, description="make every image the same, bit for bit, alone and in company"
    )
    threads: int = Field(0, ge=0, le=1024, description="threads of torch; 0 takes physical cores")
    num_slots: int = Field(
        0, ge=0, le=4096, description="images generated at the same time; 0 suits the device"
    )
    target_step_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="longest step to aim at by leaving slots empty; 0 fills all of them",
    )
    max_images: int = Field(16, ge=1, le=4096, description="most images that one request may ask")
    max_queued_steps: int = Field(
        65536, ge=1, description="bound of the queue, as images x steps of an image"
    )
    max_owner_jobs: int = Field(10000, ge=1, description="unfinished jobs that one caller may have")
    lease_s: float = Field(
        10.0, ge=0.5, le=600, description="time after which a silent worker counts as lost"
    )
    stall_s: float = Field(
        30.0, ge=1, le=3600, description="time without a finished step after which a worker ends"
    )
    canary_interval_s: float = Field(
        600.0, ge=0, le=86400,
        description="time after which an idle worker makes its known image again; 0 never does",
    )  # fmt: skip
    result_ttl_s: float = Field(
        900.0, ge=1, le=604800, description="time for which the queue's server keeps results"
    )
    default_timeout_s: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="time that a request has unless it says"
    )
    max_timeout_s: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="most time that a request may ask for"
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$",
        description="where clients reach this server, for links; left out, as the request names it",
    )
    max_body_bytes: int = Field(65536, ge=1024, description="largest request body")
    max_reproduce_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, description="largest PNG that is taken to be made again"
    )
    shutdown_grace_s: float = Field(
        25.0, ge=0, allow_inf_nan=False, description="time to finish what runs after SIGTERM"
    )
    otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://[^\s/]+",
        description="collector of traces, over OTLP/HTTP, as http://HOST:4318; none: no traces",
    )  # fmt: skip
    trace_share: float = Field(
        1.0, ge=0, le=1, description="share of the traces that begin here which are recorded"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_json: bool = Field(False, description="log one JSON object per line")

    @property
    def has_keys(self) -> bool:
        """Whether a key is needed, even if there is none yet."""
        return self.api_keys_file is not None or self.api_key_hashes is not None

    @property
    def model_names(self) -> list[str]:
        """The models to serve, the default first."""
        return [name.strip() for name in self.model.split(",")]

    @classmethod
    def load(
        cls, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Build the settings from `flags` over `environ` over the defaults.

        Raises: StartupError names the variable or flag that is wrong.
        """
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        try:
            settings = cls(**{**_from_environment(environ, set(cls.model_fields)), **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise StartupError(_explain(str(first["loc"][0]), first, given)) from None
        if settings.default_timeout_s > settings.max_timeout_s:
            raise StartupError(
                f"default_timeout_s {settings.default_timeout_s:g} is longer than "
                f"max_timeout_s {settings.max_timeout_s:g}"
            )
        return settings


def environment_for(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child process that has these settings, and none of ours."""
    others = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    return others | {PREFIX + name.upper(): text for name, text in settings.items()}


WORKER_SETTINGS = [name for name in Settings.model_fields if name not in API_SETTINGS]


def _from_environment(environ: Mapping[str, str], known: set[str]) -> dict[str, str]:
    values = {
        variable.removeprefix(PREFIX).lower(): value
        for variable, value in environ.items()
        if variable.startswith(PREFIX)
    }
    for name in sorted(set(values) - known):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise StartupError(
            f"no setting is named {PREFIX}{name.upper()}; the nearest is "
            f"{PREFIX}{nearest.upper()} (all are listed by `bar serve --help`)"
        )
    return values


def _explain(name: str, problem: Any, flags: Mapping[str, Any]) -> str:
    source = f"--{name.replace('_', '-')}" if name in flags else f"{PREFIX}{name.upper()}"
    return f"{source}: {problem['msg']}, got {problem['input']!r}"
