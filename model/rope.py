"""2-D rotary embedding: the table of angles, and the rotation of neighbouring pairs.

Used by the trunk's attention. The first P rows rotate by nothing, so prefix positions and image
positions share one table and one code path. Computed in float32 whatever the model's dtype, since
bfloat16 cannot hold the angles of a 32 × 32 grid. Source: paper §3.3; RAR, arXiv 2411.00776.
"""

import torch
from torch import Tensor

from model.config import GeneratorConfig

BASE = 10_000.0


def rotary_table(config: GeneratorConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (P + S, d) float32, on the CPU.

    Row P + n is raster cell n = (row, column) of the token grid: the first half of its d channels
    turns with the row, the second half with the column.
    """
    quarter = config.head_dim // 4
    exponent = torch.arange(quarter, dtype=torch.float32, device="cpu") * 2 / (2 * quarter)
    frequencies = (1.0 / BASE**exponent).repeat_interleave(2)  # (d/2,)
    side = torch.arange(config.tokens_per_side, dtype=torch.float32, device="cpu")
    angles = side[:, None] * frequencies  # (√S, d/2)
    by_row = angles[:, None].expand(-1, config.tokens_per_side, -1)
    by_column = angles[None].expand(config.tokens_per_side, -1, -1)
    cells = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)  # (S, d)
    prefix = torch.zeros(config.prefix_len, config.head_dim, device="cpu")
    table = torch.cat([prefix, cells])
    return table.cos(), table.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each neighbouring pair (x0, x1) of the last axis; `cos`, `sin` broadcast against `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)
