"""One comparison with a golden number, and how it is judged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

TOLERANCE = 1e-5  # 1e-4 would let a wrong norm epsilon or a wrong GELU through


@dataclass(frozen=True)
class Check:
    """The largest error of one golden array, beside the largest that is allowed."""

    name: str
    error: float
    limit: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name}: {self.error:.3g}{self.unit} (limit {self.limit:g})"


def close(name: str, actual: Tensor, expected: Any, tolerance: float = TOLERANCE) -> Check:
    """Compare real numbers by their largest error, relative to the array's scale if above 1."""
    expected = np.asarray(expected)
    if tuple(actual.shape) != expected.shape:
        return Check(f"{name} shape {tuple(actual.shape)} for {expected.shape}", float("inf"), 0)
    scale = max(1.0, float(np.abs(expected).max()))
    difference = np.abs(actual.detach().numpy().astype(np.float64) - expected)
    return Check(name, float(difference.max()) / scale, tolerance)


def equal(name: str, actual: Tensor, expected: Any) -> Check:
    """Compare integers; the error is how many of them differ."""
    expected = np.asarray(expected)
    if tuple(actual.shape) != expected.shape:
        return Check(f"{name} shape {tuple(actual.shape)} for {expected.shape}", float("inf"), 0)
    wrong = int((actual.detach().numpy() != expected).sum())
    return Check(name, wrong, 0, f" of {expected.size} differ")
