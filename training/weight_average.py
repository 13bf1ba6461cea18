"""An exponential moving average of a model's weights, which is what gets evaluated and exported.

Kept by the trainer if the stage asks for it. The decay grows with the number of updates, so that
the random initial weights are forgotten at once; it is counted in the checkpoint, since a resumed
run that restarted the count would average over another window than an uninterrupted one.
"""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model: `module` holds the average, in evaluation mode."""

    def __init__(self, model: nn.Module, max_decay: float) -> None:
        # Frozen weights are their own average: they are shared, not copied.
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.module = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.max_decay = max_decay
        self.num_updates = 0

    @property
    def decay(self) -> float:
        """What the next update keeps of the average."""
        n = self.num_updates
        return min(self.max_decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`; buffers are copied."""
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        moving = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
        averages: list[Tensor] = [mine for mine, _ in moving]
        weights: list[Tensor] = [theirs for _, theirs in moving]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.num_updates += 1
