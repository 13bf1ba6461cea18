"""Every setting as a row of a table: its variable, its default, its bounds, who reads it."""

from typing import Any, get_args

from pydantic.fields import FieldInfo

from service.settings import API_SETTINGS, PREFIX, Settings

WORKER_ONLY = {
    "worker_port", "device", "dtype", "batch_invariant", "threads", "num_slots", "target_step_s",
    "stall_s", "canary_interval_s",
}  # fmt: skip


def configuration_table() -> str:
    """Return the table of all settings, in the order in which they are declared."""
    rows = ["| variable | default | bounds | read by | meaning |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(
            f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_bounds(field)} | {_reader(name)} "
            f"| {field.description} |"
        )
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(choices)
    limits = {
        sign: getattr(limit, key)
        for limit in field.metadata
        for key, sign in {"ge": "≥", "gt": ">", "le": "≤"}.items()
        if hasattr(limit, key)
    }
    return ", ".join(f"{sign} {value:,.10g}" for sign, value in limits.items()) or "–"


def _reader(name: str) -> str:
    if name in API_SETTINGS:
        return "API"
    # Alone, without a queue on a server, `bar serve` runs the model too.
    return "worker" if name in WORKER_ONLY else "both"
