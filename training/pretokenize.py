"""Between the stages: every image becomes bits once, so that the generator never sees a pixel.

The tokenizer is frozen from here on. Everything is held in memory, one byte a bit, which fits a
small data set.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.token_grid import cells_to_tokens
from model.tokenizer import Tokenizer


class TokenizedImages(NamedTuple):
    """Images as the generator reads them."""

    tokens: Tensor  # (N, S, k) uint8 bits, raster order
    class_ids: Tensor  # (N,) int64


def pretokenize(
    tokenizer: Tokenizer,
    pixels: Tensor,
    class_ids: Tensor,
    patch_size: int,
    batch_size: int = 256,
) -> TokenizedImages:
    """Encode pixels (N, 3, height, width) in [-1, 1] into tokens of `patch_size`² cells."""
    cells = torch.cat([tokenizer.encode(part) for part in pixels.split(batch_size)])
    return TokenizedImages(cells_to_tokens(cells, patch_size), class_ids)
