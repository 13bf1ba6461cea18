"""Binary finite scalar quantization (BAR-FSQ), and the bit budgets that compare tokenizers.

Between the tokenizer's encoder and decoder: features become one bit per channel, bits become the
decoder's input. Always float32 or wider, since rounding decides bits. Source: paper §3.2,
Eq. 3 and 4; FSQ, arXiv 2309.15505.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Two levels per channel: the FSQ bound for L = 2, widened by the published epsilon of 1e-3.
HALF_WIDTH = (2 - 1) * (1 + 1e-3) / 2
OFFSET = 0.5
SHIFT = math.atanh(OFFSET / HALF_WIDTH)


class BinaryQuantizer(nn.Module):
    """Projects features to one channel per bit, rounds each to a sign, and projects back."""

    def __init__(self, bits_per_latent: int, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(encoder_width, bits_per_latent)
        self.out_proj = nn.Linear(bits_per_latent, decoder_width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, width) features → (B, L, bits) codes of -1 and +1, with straight-through gradient.

        The threshold lies at z = -SHIFT, about -3.8, not at 0: training has to start `in_proj.bias`
        there, or every bit begins as 1 with hardly any gradient.
        """
        z = _linear_float32(self.in_proj, features)
        bounded = (z + SHIFT).tanh() * HALF_WIDTH - OFFSET  # in about (-1, 0)
        rounded = bounded + (bounded.round() - bounded).detach()
        return 2 * rounded + 1

    def embed(self, codes: Tensor) -> Tensor:
        """(B, L, bits) codes of -1 and +1 → (B, L, decoder width)."""
        return _linear_float32(self.out_proj, codes)


def _linear_float32(linear: nn.Linear, x: Tensor) -> Tensor:
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(wide), linear.weight.to(wide), linear.bias.to(wide))


def codes_to_bits(codes: Tensor) -> Tensor:
    """Codes of -1 and +1 → uint8 bits of 0 and 1."""
    return (codes > 0).to(torch.uint8)


def bits_to_codes(bits: Tensor) -> Tensor:
    """Bits of 0 and 1 → float32 codes of -1 and +1."""
    return bits.float() * 2 - 1


def discrete_bit_budget(height: int, width: int, downsampling: int, codebook_size: int) -> int:
    """Return the bits that a discrete tokenizer spends on one image (paper Eq. 3).

    Units: height, width in pixels; downsampling in pixels per latent cell side.
    """
    return _num_cells(height, width, downsampling) * math.ceil(math.log2(codebook_size))


def continuous_bit_budget(height: int, width: int, downsampling: int, num_channels: int) -> int:
    """Return the bits that a continuous tokenizer spends on one image, at 16 bits for each of
    `num_channels` latent channels (paper Eq. 4). Units as in `discrete_bit_budget`."""
    return _num_cells(height, width, downsampling) * 16 * num_channels


def _num_cells(height: int, width: int, downsampling: int) -> int:
    if height % downsampling or width % downsampling:
        raise ValueError(f"downsampling {downsampling} does not divide {height} x {width} pixels")
    return (height // downsampling) * (width // downsampling)
