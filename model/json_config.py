"""Frozen dataclasses that are also JSON objects, and the checks that they make of their values.

Under `config.py`, and under whatever else is written into files as JSON. Unknown keys are refused:
a setting that is silently ignored changes a result. Every message names the value that came.
"""

from dataclasses import MISSING, asdict, fields
from typing import Any, Self


def require_positive(owner: object, *names: str) -> None:
    """Raise ValueError unless every named attribute of `owner` is an integer of at least 1."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def require_between(name: str, value: object, low: float, high: float) -> None:
    """Raise ValueError unless `value` is a number within both bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # type: ignore[operator]  # NaN fails too
        raise ValueError(f"{name} must be a number between {low:g} and {high:g}, got {value!r}")


def require_index(name: str, value: object, last: int) -> None:
    """Raise ValueError unless `value` is an integer from 0 to `last`."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not (is_integer and 0 <= value <= last):  # type: ignore[operator]
        raise ValueError(f"{name} must be an integer between 0 and {last}, got {value!r}")


def require_object(owner: type, values: object) -> None:
    """Raise ValueError unless `values`, read for `owner`, is a JSON object."""
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004  # it comes from a file: a wrong value, not a wrong call
            f"{owner.__name__} must be a JSON object, got {values!r}"
        )


class JsonConfig:
    """Conversion of a frozen dataclass from and to plain JSON values, refusing unknown keys."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Build the configuration from `values`; ValueError names unknown and missing keys."""
        require_object(cls, values)
        known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        missing = sorted(
            name for name, field in known.items() if name not in values and field.default is MISSING
        )
        if unknown or missing:
            raise ValueError(f"{cls.__name__}: unknown keys {unknown}, missing keys {missing}")
        return cls(**values)
