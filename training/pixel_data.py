"""Images as the tokenizer's stage reads them: batches of pixels, from memory or from files.

`HeldPixels` holds a small data set whole; `image_data.py` reads a large one picture by picture.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class PixelData(Protocol):
    """Pictures of one size, wherever they lie."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, seed: int) -> Tensor:
        """Return pixels (B, 3, height, width), float32 in [-1, 1].

        `seed` decides what varies, such as crops and mirroring. Safe to call from any thread.
        """


@dataclass(frozen=True)
class HeldPixels:
    """Pictures in memory, which do not vary."""

    pixels: Tensor  # (N, 3, height, width) in [-1, 1]

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, indices: Tensor, seed: int) -> Tensor:  # noqa: ARG002
        return self.pixels[indices]
