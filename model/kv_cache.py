"""Keys and values of every layer, preallocated, with a position per row.

Owned by whoever generates (`generate.py`, `engine.py`) and passed into the trunk, which holds no
state of its own. A row is one image's conditional or unconditional sequence; every row has the
same length because every BAR image takes the same number of steps.
"""

import torch
from torch import Tensor

from model.config import GeneratorConfig


class KVCache:
    """Keys and values, each (depth, rows, H, T, d)."""

    def __init__(
        self, config: GeneratorConfig, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.depth, num_rows, config.num_heads, config.sequence_len, config.head_dim)
        # Zeros, not empty: masked positions are multiplied by zero, and 0 · NaN is NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def write_prefix(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store the first positions of `rows` (B,); `keys`, `values`: (B, H, N, d)."""
        length = keys.shape[2]
        self.keys[layer, rows, :, :length] = keys
        self.values[layer, rows, :, :length] = values

    def append(
        self, layer: int, rows: Tensor, index: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store one position of each of `rows` (B,) at its own `index` (B,) and return all of the
        rows' keys and values (B, H, T, d); `keys`, `values`: (B, H, 1, d)."""
        self.keys[layer, rows, :, index] = keys[:, :, 0]
        self.values[layer, rows, :, index] = values[:, :, 0]
        return self.keys[layer, rows], self.values[layer, rows]
