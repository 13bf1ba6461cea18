"""The masked-bit head: from one latent to the k bits of one token, in a few unmasking rounds.

`forward` gives the logits of every bit given the visible ones, `loss` trains it, `sample` draws a
token. The trunk's latent enters as an adaLN condition, not as input, so the head sees nothing of
other tokens. Source: paper §3.4, masked bit modelling.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GeneratorConfig
from model.layers import BitEmbedding, SwiGLU, modulate, rms_norm
from model.sampling import MASK, Unmasking, guide, gumbel, pick_bits, remask

NUM_FREQUENCIES = 256
VISIBLE_BIT_WEIGHT = 0.1  # of the published training code; the paper does not mention it


class MaskRatioEmbedding(nn.Module):
    """Fourier features of the mask ratio, at fixed random frequencies stored with the model."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(NUM_FREQUENCIES))
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, mask_ratio: Tensor) -> Tensor:
        """(N,) → (N, W)."""
        angles = 2 * math.pi * mask_ratio[:, None] * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class HeadBlock(nn.Module):
    """adaLN-modulated residual SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = rms_norm(width)
        self.mlp = SwiGLU(width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x`, `condition`: (N, W)."""
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))  # type: ignore[no-any-return]


class MaskedBitHead(nn.Module):
    """Predicts the masked bits of a token from the visible ones, the mask ratio and a latent."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.bits_per_token = config.bits_per_token
        width = config.head_width
        self.bit_embed = BitEmbedding(config.bits_per_token, width)
        self.input_proj = nn.Linear(self.bit_embed.out_features, width)
        self.input_norm = rms_norm(width)
        self.ratio_embed = MaskRatioEmbedding(width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(config.head_depth))
        self.final_norm = rms_norm(width)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.bit_logits = nn.Linear(width, 2 * config.bits_per_token)

    def forward(self, bits: Tensor, latent: Tensor, mask_ratio: Tensor) -> Tensor:
        """Return float32 (or wider) logits (N, k, 2) of each bit being 0 and 1.

        Shapes: bits (N, k) in {0, 1, MASK}; latent (N, W); mask_ratio (N,) in [0, 1].
        """
        x = self.input_norm(self.input_proj(self.bit_embed(bits)))  # (N, W)
        # Every modulation applies SiLU once more: the published head does both.
        condition = F.silu(self.ratio_embed(mask_ratio) + latent)  # (N, W)
        for block in self.blocks:
            x = block(x, condition)  # (N, W)
        # Scale before shift here, unlike in the blocks.
        scale, shift = self.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        logits: Tensor = self.bit_logits(modulate(self.final_norm(x), shift, scale))  # (N, 2k)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).reshape(-1, self.bits_per_token, 2)

    def loss(self, bits: Tensor, latent: Tensor, mask: Tensor, mask_ratio: Tensor) -> Tensor:
        """Return the weighted mean cross entropy of all bits, a scalar.

        Shapes: bits (N, k) in {0, 1}; latent (N, W); mask (N, k), True where hidden;
        mask_ratio (N,), the ratio drawn, which need not be the exact share of `mask`.
        """
        bits = bits.long()
        logits = self(torch.where(mask, MASK, bits), latent, mask_ratio)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), bits.flatten(), reduction="none")
        weight = torch.where(mask.flatten(), 1.0, VISIBLE_BIT_WEIGHT)
        return (weight * cross_entropy).sum() / (weight.sum() + 1e-8)

    def judge(
        self, bits: Tensor, latent: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of each token's hidden bits, in nats, and how many of them are
        what is likeliest, both (N,); shapes as in `loss`."""
        bits = bits.long()
        logits = self(torch.where(mask, MASK, bits), latent, mask_ratio)
        cross_entropy = F.cross_entropy(logits.transpose(1, 2), bits, reduction="none")
        is_right = mask & (logits.argmax(-1) == bits)
        return torch.where(mask, cross_entropy, 0).sum(-1), is_right.sum(-1)

    def first_logits(self, latent: Tensor, null_latent: Tensor, guidance: Tensor) -> Tensor:
        """Return `guided_logits` of fully masked tokens."""
        bits = torch.full((len(latent), self.bits_per_token), MASK, device=latent.device)
        return self.guided_logits(bits, latent, null_latent, torch.ones_like(guidance), guidance)

    def sample(
        self,
        latent: Tensor,
        null_latent: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        unmasking: Unmasking,
        uniforms: Tensor,
    ) -> Tensor:
        """Draw one token for each of B rows and return its bits (B, k) int64.

        Shapes: latent, null_latent (B, W); guidance, temperature (B,); uniforms (B, R, k, 3) in
        [0, 1), for the two values of each bit and for its confidence. Rows whose guidance is 1
        get the conditional logits exactly, whatever their null latent is.
        """
        batch, num_bits = len(latent), self.bits_per_token
        bits = torch.full((batch, num_bits), MASK, device=latent.device)
        noise = gumbel(uniforms)  # (B, R, k, 3)
        for r in range(unmasking.max_rounds):
            logits = self.guided_logits(
                bits, latent, null_latent, unmasking.mask_ratio[:, r], guidance
            )
            annealed = (temperature * unmasking.anneal[:, r])[:, None]  # (B, 1)
            masked = bits == MASK
            drawn, confidence = pick_bits(logits, annealed, noise[:, r])
            bits = torch.where(masked, drawn, bits)
            confidence = torch.where(masked, confidence, math.inf)
            bits = remask(bits, confidence, masked.sum(-1), unmasking.still_masked[:, r])
        return bits

    def guided_logits(
        self,
        bits: Tensor,
        latent: Tensor,
        null_latent: Tensor,
        mask_ratio: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """Return `forward`'s logits (N, k, 2) with guidance (N,) applied."""
        logits, null_logits = self(
            bits.repeat(2, 1), torch.cat([latent, null_latent]), mask_ratio.repeat(2)
        ).chunk(2)
        return guide(logits, null_logits, guidance)
