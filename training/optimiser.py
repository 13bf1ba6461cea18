"""AdamW's parameter groups and the learning rate of each step.

Called by the trainer for both stages. The published code decides which parameters decay by looking
for "norm", "ln", "bias" and "embed" in their names, which also catches every adaLN matrix, the
ratio embedding and the output layer: a third of BAR-B. The same split is stated here by module
type, so that renaming a module cannot change how it is trained. A head's output layer is exempt
whatever the head, as the masked-bit head's is by its name.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import nn

from model.bit_head import BitHead
from model.linear_head import LinearHead
from model.masked_bit_head import MaskedBitHead, MaskRatioEmbedding
from model.tokenizer import Tokenizer
from training.initialise import modulations
from training.section import Section


class OptimiserConfig(Section):
    """AdamW with linear warm-up, cosine decay to `final_learning_rate`, and gradient clipping."""

    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    encoder_scale: float = Field(default=1.0, ge=0)  # of a tokenizer's encoder, times the rate

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of `step`, counted from 0, of a run of `num_steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.final_learning_rate + cosine * (self.learning_rate - self.final_learning_rate)


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of `model`; a group's `scale` is its share of
    the learning rate."""
    decayed, exempt = parameter_groups(model)
    groups: list[dict[str, Any]] = []
    for parameters, decay in ((decayed, config.weight_decay), (exempt, 0.0)):
        for chosen, scale in _by_learning_rate(model, parameters, config.encoder_scale):
            groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def _by_learning_rate(
    model: nn.Module, parameters: list[nn.Parameter], encoder_scale: float
) -> list[tuple[list[nn.Parameter], float]]:
    if not isinstance(model, Tokenizer) or model.encoder is None or encoder_scale == 1:
        return [(parameters, 1.0)]
    encoder = {id(p) for p in model.encoder.parameters()}
    return [
        ([p for p in parameters if id(p) not in encoder], 1.0),
        ([p for p in parameters if id(p) in encoder], encoder_scale),
    ]


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters of `model` into those that decay and those that do not."""
    exempt_modules = {part for root in _exempt_roots(model) for part in root.modules()}
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in exempt_modules
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return (
        [p for p in trainable if id(p) in matrices],
        [p for p in trainable if id(p) not in matrices],
    )


def _exempt_roots(model: nn.Module) -> list[nn.Module]:
    roots: list[nn.Module] = [*modulations(model)]
    for module in model.modules():
        if isinstance(module, MaskRatioEmbedding):
            roots.append(module)
        elif isinstance(module, MaskedBitHead | BitHead):
            roots.append(module.bit_logits)
        elif isinstance(module, LinearHead):
            roots.append(module.token_logits)
    return roots
