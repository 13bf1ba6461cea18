"""Which bits of each token are hidden in training, and which labels are dropped.

Called by the generator's stage for every batch. The ratio drawn is handed to the head as it is,
not as the share of bits that rounding made of it, as the published training does. Source: paper
§3.4; the logit-normal's scale from the published training code.
"""

import torch
from torch import Tensor

LOGIT_SCALE = 0.8


def draw_bit_masks(
    batch_size: int, num_tokens: int, bits_per_token: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return masks (B, S, k), True where hidden, and the mask ratios (B, S) they were drawn for.

    Per token t = sigmoid(0.8 · N(0, 1)) and ratio = clamp(1 - t, 1/k, 1); max(1, round(k · ratio))
    bits, chosen uniformly, are hidden.
    """
    t = torch.sigmoid(LOGIT_SCALE * torch.randn(batch_size, num_tokens, device=device))
    ratio = (1 - t).clamp(1 / bits_per_token, 1)
    num_hidden = (bits_per_token * ratio).round().clamp_min(1)
    noise = torch.rand(batch_size, num_tokens, bits_per_token, device=device)
    rank = noise.argsort(dim=-1).argsort(dim=-1)
    return rank < num_hidden[..., None], ratio


def drop_classes(class_ids: Tensor, null_class: int, probability: float) -> Tensor:
    """Replace each label by "no class" with `probability`, which guidance needs."""
    dropped = torch.rand(class_ids.shape, device=class_ids.device) < probability
    return torch.where(dropped, null_class, class_ids)
