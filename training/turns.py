"""Whose turn it is when a tokenizer is trained against a discriminator.

Read by the tokenizer's stage and by the trainer. From the discriminator's start on the two take
turns, each step with a fresh batch. Learning rates follow the run's step, not the number of own
turns: in the published training, schedules that count their own steps never reach their end.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from training.optimiser import OptimiserConfig
from training.section import Section


class DiscriminatorConfig(Section):
    """When the adversarial loss begins, and how its network is trained."""

    start: int = Field(default=100_000, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)  # of the run, after the start


@dataclass(frozen=True)
class Opponent:
    """A discriminator and its turns."""

    module: nn.Module
    config: DiscriminatorConfig

    def has_begun(self, step: int) -> bool:
        """Say whether the adversarial loss counts in `step`."""
        return step >= self.config.start

    def has_turn(self, step: int) -> bool:
        """Say whether `step` trains the discriminator: every second one, its first one first."""
        return self.has_begun(step) and (step - self.config.start) % 2 == 0

    def learning_rate_at(self, step: int) -> float:
        """Return the discriminator's learning rate: warm-up, then constant."""
        done = step - self.config.start + 1
        return self.config.learning_rate * min(1.0, done / max(1, self.config.warmup_steps))

    def build_optimiser(self, tokenizers: OptimiserConfig) -> torch.optim.AdamW:
        """Build the discriminator's AdamW, with the tokenizer's betas."""
        groups = [{"params": list(self.module.parameters()), "scale": 1.0}]
        betas = (tokenizers.beta1, tokenizers.beta2)
        rate = self.config.learning_rate
        return torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=0.0)
