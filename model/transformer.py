"""The trunk: a causal transformer over bit tokens whose latents the head reads.

Called by `generator.py` (training), `generate.py` and `engine.py` (sampling). Three methods, no
mode flags: `forward` is teacher-forced and sees whole sequences in any order, `prefill` reads the
class prefix into a cache, `decode_step` advances every row by one token, each at its own position.

A sequence position has three coordinates, and most mistakes in porting BAR confuse them: `own`,
the table row of its cell; `target`, the row of the cell it is about to predict; and `sequence`,
where it stands in generation order. Source: paper §3.3; target-aware positions: RAR, arXiv
2411.00776.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GeneratorConfig
from model.kv_cache import KVCache
from model.layers import (
    Attend,
    BitEmbedding,
    SwiGLU,
    causal_attention,
    merge_heads,
    modulate,
    rms_norm,
    split_heads,
)
from model.rope import rotary_table, rotate

# The published tables are longer than any sequence by these numbers of rows.
SPARE_POSITIONS = 128
SPARE_CONDITIONS = 100
# Rows 0, 1 and 2 of the published class table are unused; class c is row c + 3.
FIRST_CLASS_ROW = 3


class Positions(NamedTuple):
    """Where each of N sequence positions stands, (B, N) each: see the module's docstring."""

    own: Tensor
    target: Tensor
    sequence: Tensor


class Rotary(NamedTuple):
    """Cosines and sines, (B, 1, N, d) each, at a position's own cell and at its target's."""

    own: tuple[Tensor, Tensor]
    target: tuple[Tensor, Tensor]


class TrunkAttention(nn.Module):
    """Attention with normalised, target-aware rotated queries: the first half of the query heads
    turns at a position's own cell, the second half at the cell that it predicts."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = rms_norm(width // num_heads)
        self.k_norm = rms_norm(width // num_heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        q_own, q_target = self.q_norm(q).chunk(2, dim=1)  # (B, H/2, N, d)
        q = torch.cat([rotate(q_own, *rotary.own), rotate(q_target, *rotary.target)], dim=1)
        k = rotate(self.k_norm(k), *rotary.own)
        out: Tensor = self.proj(merge_heads(attend(q, k, v)))
        return out


class Block(nn.Module):
    """adaLN-zero transformer block."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = rms_norm(width)
        self.attn = TrunkAttention(width, num_heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = rms_norm(width)
        self.mlp = SwiGLU(width, dropout)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """`x`, `condition`: (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(
            6, dim=-1
        )
        attended = self.attn(modulate(self.norm1(x), shift1, scale1), rotary, attend)
        x = x + gate1 * self.dropout(attended)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Class and bit tokens in, latents for the head out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GeneratorConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width, num_positions = config.width, config.num_tokens + SPARE_POSITIONS
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_embed = nn.Embedding(FIRST_CLASS_ROW + config.num_classes + 1, width)
        self.bit_embed = BitEmbedding(config.bits_per_token, width)
        self.bit_merge = nn.Linear(self.bit_embed.out_features, width)
        self.position_embed = nn.Parameter(torch.empty(1, num_positions, width))
        self.target_position_embed = nn.Parameter(torch.empty(1, num_positions, width))
        self.condition_position_embed = nn.Parameter(
            torch.empty(1, config.num_tokens + SPARE_CONDITIONS, width)
        )
        for table in (
            self.cls_token,
            self.class_embed.weight,
            self.position_embed,
            self.target_position_embed,
            self.condition_position_embed,
        ):
            nn.init.trunc_normal_(table, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, dropout) for _ in range(config.depth)
        )
        self.norm = rms_norm(width)
        self.latent_proj = nn.Linear(width, config.head_width)
        cos, sin = rotary_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, bits: Tensor, class_ids: Tensor, order: Tensor) -> Tensor:
        """Return the latents that predict each token, teacher-forced.

        Shapes: bits (B, S, k) in generation order; class_ids (B,), `config.null_class` for "no
        class"; order (B, S), the cell generated j-th → (B, S, W).
        """
        read = self.embed_tokens(bits[:, :-1])  # the last token predicts nothing
        x = torch.cat([self.embed_prefix(class_ids), read], dim=1)  # (B, T, D)
        x = self._run_blocks(x, class_ids, self._positions(order), lambda _: causal_attention)
        return self._to_latent(x[:, self.config.prefix_len - 1 :])

    def prefill(self, class_ids: Tensor, order: Tensor, cache: KVCache, rows: Tensor) -> Tensor:
        """Read the class prefix into `rows` of `cache`; return the first token's latent.

        Shapes: class_ids, rows (B,); order (B, S) → (B, W).
        """

        def attend_at(layer: int) -> Attend:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                cache.write_prefix(layer, rows, k, v)
                return causal_attention(q, k, v)

            return attend

        positions = Positions(
            *(part[:, : self.config.prefix_len] for part in self._positions(order))
        )
        x = self._run_blocks(self.embed_prefix(class_ids), class_ids, positions, attend_at)
        return self._to_latent(x[:, -1])

    def decode_step(
        self,
        bits: Tensor,
        token_index: Tensor,
        class_ids: Tensor,
        order: Tensor,
        cache: KVCache,
        rows: Tensor,
    ) -> Tensor:
        """Append each row's newest token to `cache`; return the latent of the one after it.

        Shapes: bits (B, k); token_index (B,), j of the token that `bits` are, at most S - 2;
        class_ids, rows (B,); order (B, S) → (B, W).
        """
        config = self.config
        index = config.prefix_len + token_index  # (B,)
        own = config.prefix_len + order.gather(1, token_index[:, None])
        target = config.prefix_len + order.gather(1, token_index[:, None] + 1)
        visible = torch.arange(config.sequence_len, device=index.device) <= index[:, None]

        def attend_at(layer: int) -> Attend:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                keys, values = cache.append(layer, rows, index, k, v)
                return F.scaled_dot_product_attention(
                    q, keys, values, attn_mask=visible[:, None, None]
                )

            return attend

        positions = Positions(own, target, index[:, None])
        x = self._run_blocks(self.embed_tokens(bits[:, None]), class_ids, positions, attend_at)
        return self._to_latent(x[:, 0])

    def embed_prefix(self, class_ids: Tensor) -> Tensor:
        """(B,) → (B, P, D): the class token, then the class condition, repeated."""
        class_token = self.cls_token.expand(len(class_ids), -1, -1)
        condition = self._embed_class(class_ids)[:, None]
        return torch.cat([class_token, condition.expand(-1, self.config.class_repeat, -1)], dim=1)

    def embed_tokens(self, bits: Tensor) -> Tensor:
        """(B, N, k) → (B, N, D)."""
        merged: Tensor = self.bit_merge(self.bit_embed(bits))
        return merged

    def _embed_class(self, class_ids: Tensor) -> Tensor:
        embedded: Tensor = self.class_embed(class_ids + FIRST_CLASS_ROW)
        return embedded

    def _positions(self, order: Tensor) -> Positions:
        """Positions of a whole sequence of T = P + S - 1, for an order (B, S)."""
        batch, prefix_len = len(order), self.config.prefix_len
        index = torch.arange(self.config.sequence_len, device=order.device).expand(batch, -1)
        own = torch.cat([index[:, :prefix_len], prefix_len + order[:, :-1]], dim=1)
        # Every prefix position, not only the last, aims at the first token to be generated.
        first = order[:, :1].expand(-1, prefix_len)
        target = prefix_len + torch.cat([first, order[:, 1:]], dim=1)
        return Positions(own, target, index)

    def _run_blocks(
        self,
        x: Tensor,
        class_ids: Tensor,
        positions: Positions,
        attend_at: Callable[[int], Attend],
    ) -> Tensor:
        x = x + self.position_embed[0][positions.own]
        x = x + self.target_position_embed[0][positions.target]
        condition = self._embed_class(class_ids)[:, None]
        condition = condition + self.condition_position_embed[0][positions.sequence]  # (B, N, D)
        rotary = Rotary(self._rotary_at(positions.own), self._rotary_at(positions.target))
        for layer, block in enumerate(self.blocks):
            x = block(x, condition, rotary, attend_at(layer))
        return x

    def _rotary_at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[rows][:, None], self.sin[rows][:, None]

    def _to_latent(self, x: Tensor) -> Tensor:
        latent: Tensor = self.latent_proj(self.norm(x))
        return latent
