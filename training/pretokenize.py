"""Between the stages: every image becomes bits once, so that the generator never sees a pixel.

The tokenizer is frozen from here on. A small data set is held in memory, one byte a bit, by this
module; a large one lies packed on the disk (`token_store.py`). The generator's stage reads both
through `TokenData`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.token_grid import cells_to_tokens
from model.tokenizer import Tokenizer


class TokenData(Protocol):
    """Tokenized images, wherever they lie."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return tokens (B, S, k), uint8 bits in raster order, and class ids, int64 (B,).

        `seed` decides what varies of the images, such as which are mirrored. Safe to call from
        any thread.
        """


@dataclass(frozen=True)
class TokenizedImages:
    """Images as the generator reads them, in memory."""

    tokens: Tensor  # (N, S, k) uint8 bits, raster order
    class_ids: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.tokens)

    def fetch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the images themselves: nothing of them varies."""
        return self.tokens[indices], self.class_ids[indices]


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
