"""What every part of a run's configuration has in common: frozen, checked, nothing unknown.

The parts stand beside the code that they configure; `run_config.py` puts them together. Pydantic
checks them, so that a YAML file, a flag and a line of Python are held to the same rules, and an
error names the field.
"""

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import TrainingError


class Section(BaseModel):
    """A part of a run's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, from which the same section can be made again."""
        values: dict[str, Any] = json.loads(self.model_dump_json())
        return values

    def but(self, **changes: Any) -> Self:
        """Return a copy with other values, checked like the first."""
        current = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**current, **changes})


def explain(error: ValidationError) -> TrainingError:
    """Turn pydantic's findings into one message, a line for each field."""
    lines = [
        f"{'.'.join(map(str, finding['loc'])) or 'the configuration'}: {_reason(finding)}"
        for finding in error.errors()
    ]
    return TrainingError("; ".join(lines))


def _reason(finding: Any) -> str:
    if finding["type"] == "extra_forbidden":
        return "there is no such setting"
    if finding["type"] == "missing":
        return "is missing"
    message: str = finding["msg"].removeprefix("Value error, ")
    return message if "got " in message else f"{message}, got {finding['input']!r}"
