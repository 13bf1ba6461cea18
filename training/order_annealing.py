"""In which order the tokens of a training image are generated: from random to raster.

Called by the generator's stage. Early on every image has its own random order, late all are in
raster order, which is how most images are sampled. Source: RAR, arXiv 2411.00776 §3.2.
"""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from training.section import Section


class OrderAnnealing(Section):
    """Steps between which the share of random orders falls from 1 to 0; both -1 is raster only."""

    start: int
    end: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.start, self.end) != (-1, -1) and not 0 <= self.start <= self.end:
            raise ValueError(
                f"order annealing must have 0 <= start <= end, or both -1 for raster order only, "
                f"got start {self.start} and end {self.end}"
            )
        return self

    def scaled(self, share: float) -> Self:
        """Return the same annealing for a run of `share` of the steps."""
        if self.end == -1:
            return self
        return self.but(start=round(self.start * share), end=round(self.end * share))

    def random_share(self, step: int) -> float:
        """Return the probability that an image of `step` has a random order."""
        if step < self.start:
            return 1.0
        if step >= self.end:
            return 0.0
        return 1 - (step - self.start) / (self.end - self.start)


def draw_orders(
    batch_size: int, num_tokens: int, random_share: float, device: torch.device | None = None
) -> Tensor:
    """Return the cell generated j-th, int64 (B, S): a uniform permutation with probability
    `random_share`, else raster order."""
    shuffled = torch.rand(batch_size, num_tokens, device=device).argsort(dim=-1)
    raster = torch.arange(num_tokens, device=device).expand(batch_size, -1)
    is_random = torch.rand(batch_size, 1, device=device) < random_share
    return torch.where(is_random, shuffled, raster)
