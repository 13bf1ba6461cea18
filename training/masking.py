"""Which bits of each token are hidden in training, and which labels are dropped.

Called by the generator's stage for every batch. The ratio drawn is handed to the head as it is,
not as the share of bits that rounding made of it, as the published training does. A head without
rounds sees no bit at all: nothing is drawn for it. Source: paper §3.4; the logit-normal's scale
from the published training code; arccos: MaskGIT's ratios.
"""

import math
from typing import Literal

import torch
from torch import Tensor

LOGIT_SCALE = 0.8

MaskDistribution = Literal["logit_normal", "uniform", "arccos"]


def draw_bit_masks(
    batch_size: int,
    num_tokens: int,
    bits_per_token: int,
    device: torch.device | None = None,
    distribution: MaskDistribution = "logit_normal",
) -> tuple[Tensor, Tensor]:
    """Return masks (B, S, k), True where hidden, and the mask ratios (B, S) they were drawn for.

    Per token the ratio is 1 - sigmoid(0.8 · N(0, 1)), uniform, or 2/π · arccos of a uniform number,
    at least 1/k; max(1, round(k · ratio)) bits, chosen uniformly, are hidden.
    """
    ratio = _draw_ratios((batch_size, num_tokens), distribution, device).clamp(
        1 / bits_per_token, 1
    )
    num_hidden = (bits_per_token * ratio).round().clamp_min(1)
    return _hide(num_hidden, bits_per_token), ratio


def draw_round_masks(
    batch_size: int, num_tokens: int, bits_per_token: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return masks (B, S, k) and how many bits they hide, int64 (B, S): as many as are hidden
    before some round, if each draws one bit and any of the rounds and orders is as likely."""
    num_hidden = torch.randint(1, bits_per_token + 1, (batch_size, num_tokens), device=device)
    return _hide(num_hidden, bits_per_token), num_hidden


def _hide(num_hidden: Tensor, bits_per_token: int) -> Tensor:
    noise = torch.rand(*num_hidden.shape, bits_per_token, device=num_hidden.device)
    rank = noise.argsort(dim=-1).argsort(dim=-1)
    return rank < num_hidden[..., None]


def _draw_ratios(
    shape: tuple[int, int], distribution: MaskDistribution, device: torch.device | None
) -> Tensor:
    if distribution == "logit_normal":
        return 1 - torch.sigmoid(LOGIT_SCALE * torch.randn(shape, device=device))
    uniform = torch.rand(shape, device=device)
    return uniform if distribution == "uniform" else uniform.acos() * (2 / math.pi)


def drop_classes(class_ids: Tensor, null_class: int, probability: float) -> Tensor:
    """Replace each label by "no class" with `probability`, which guidance needs."""
    dropped = torch.rand(class_ids.shape, device=class_ids.device) < probability
    return torch.where(dropped, null_class, class_ids)
