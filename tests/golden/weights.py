"""Deterministic parameters: each a pure function of its published name and its shape."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.published import Table, published_name


def golden_tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the golden value of the parameter published as `name`.

    With n standard normal: gains (1-D, named …weight) are 1 + 0.1 n, other vectors and scalars
    0.05 n, position tables (3-D) 0.2 n, and matrices 0.7 n / sqrt(fan-in).
    """
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) <= 1:
        return 1.0 + 0.1 * noise if name.endswith("weight") else 0.05 * noise
    if len(shape) == 3:
        return 0.2 * noise
    return noise * np.float32(0.7 / np.prod(shape[1:]) ** 0.5)


def load_golden_weights(
    module: nn.Module,
    names: Table,
    overrides: dict[str, NDArray[np.float32]] | None = None,
) -> None:
    """Fill `module` with golden values; `names` tells what its parameters are published as, and
    `overrides` replaces some values, by published name."""
    overrides = overrides or {}

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        published = published_name(name, names)
        return torch.from_numpy(
            overrides.get(published, np.asarray(golden_tensor(published, shape)))
        )

    module.load_state_dict(
        {name: value(name, tuple(old.shape)) for name, old in module.state_dict().items()}
    )
    module.eval()
