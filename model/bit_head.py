"""The bit head: two logits for each of the k bits of a token, from one layer.

The second head that the paper compares its own with. It grows with k and not with 2^k, and draws in
one pass; but given the latent its bits are independent of each other, so it cannot say that two of
them go together. Source: paper Table 1; after Infinity, arXiv 2412.04431.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GeneratorConfig
from model.sampling import Unmasking, guide, gumbel, pick_bits


class BitHead(nn.Module):
    """Predicts every bit of a token by itself."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.bits_per_token = config.bits_per_token
        self.bit_logits = nn.Linear(config.head_width, 2 * config.bits_per_token)

    def forward(self, latent: Tensor) -> Tensor:
        """Return float32 (or wider) logits (N, k, 2) of each bit being 0 and 1; latent (N, W)."""
        logits: Tensor = self.bit_logits(latent)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).reshape(-1, self.bits_per_token, 2)

    def loss(
        self,
        bits: Tensor,
        latent: Tensor,
        mask: Tensor,  # noqa: ARG002  # no bit is ever seen
        mask_ratio: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Return the mean cross entropy of a bit; see `Head`."""
        return F.cross_entropy(self(latent).flatten(0, 1), bits.long().flatten())

    def judge(
        self,
        bits: Tensor,
        latent: Tensor,
        mask: Tensor,  # noqa: ARG002  # no bit is ever seen
        mask_ratio: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return each token's summed cross entropy, and how many bits are what is likeliest."""
        logits, bits = self(latent), bits.long()  # (N, k, 2)
        nats = F.cross_entropy(logits.transpose(1, 2), bits, reduction="none").sum(-1)
        return nats, (logits.argmax(-1) == bits).sum(-1)

    def first_logits(self, latent: Tensor, null_latent: Tensor, guidance: Tensor) -> Tensor:
        """Return logits (N, k, 2) with guidance (N,) applied."""
        logits, null_logits = self(torch.cat([latent, null_latent])).chunk(2)
        return guide(logits, null_logits, guidance)

    def sample(
        self,
        latent: Tensor,
        null_latent: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        unmasking: Unmasking,  # noqa: ARG002  # there is one round
        uniforms: Tensor,
    ) -> Tensor:
        """Draw one token for each row and return its bits (N, k); see `Head`."""
        logits = self.first_logits(latent, null_latent, guidance)
        return pick_bits(logits, temperature[:, None], gumbel(uniforms[:, 0]))[0]
