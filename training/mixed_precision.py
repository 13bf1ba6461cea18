"""Arithmetic in bfloat16 where that is safe, weights in float32: autocast, without its noise.

Used by the trainer and by the memory estimate, so that both see the same tensors.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


@contextmanager
def autocast(device_type: str, precision: Precision) -> Iterator[None]:
    """Compute in `precision` inside."""
    with (
        torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"),
        warnings.catch_warnings(),
    ):
        # A gain in float32 over activations in bfloat16 is meant; it only costs a fused kernel.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
