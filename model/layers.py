"""Building blocks of the trunk, the masked-bit head and the tokenizer's vision transformers.

Each is a few lines, so that `transformer.py`, `masked_bit_head.py` and `image_decoder.py` read like
the paper's method section. Attention itself is passed in as a function: the same block serves
teacher forcing, prefill and decoding without knowing which.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v: (B, heads, N, d) -> (B, heads, N, d)

NORM_EPS = 1e-6


def swiglu_width(width: int) -> int:
    """Return the published hidden width of a SwiGLU: ⌊2/3 · 4 · width⌋."""
    return 8 * width // 3


def rms_norm(width: int) -> nn.RMSNorm:
    """Build an RMSNorm with gain; torch computes its statistics in float32 or wider."""
    return nn.RMSNorm(width, eps=NORM_EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply adaLN modulation to normalised `x`."""
    return x * (1 + scale) + shift


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H·d) → (B, H, N, d)."""
    return x.reshape(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) → (B, N, H·d)."""
    return x.transpose(1, 2).flatten(2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from every position to itself and those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class SwiGLU(nn.Module):
    """Gated feed-forward: w3(SiLU(a) · b) with [a | b] = w12(x), biases throughout."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = swiglu_width(width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(self.dropout(F.silu(gate) * value))
        return out


class Mlp(nn.Module):
    """Two-layer GELU feed-forward of a plain vision transformer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SelfAttention(nn.Module):
    """Bidirectional multi-head self-attention of a plain vision transformer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        out: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return out


class VitBlock(nn.Module):
    """Pre-norm vision transformer block with LayerNorm (eps 1e-5) and exact GELU."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class BitEmbedding(nn.Module):
    """Embed k bits (0, 1, or 2 for masked) by table and concatenate them bit-major.

    Each bit owns ⌈width/k⌉ channels, so `out_features` may exceed `width`.
    """

    def __init__(self, bits_per_token: int, width: int) -> None:
        super().__init__()
        bit_width = -(-width // bits_per_token)
        self.out_features = bits_per_token * bit_width
        self.weight = nn.Parameter(torch.empty(3, bit_width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, bits: Tensor) -> Tensor:
        """(…, k) integer bits → (…, k·⌈width/k⌉)."""
        return F.embedding(bits.long(), self.weight).flatten(-2)
