"""The linear head: one score for each of the 2^k values of a token, from one layer.

The head of most autoregressive image models, and the first that the paper compares its own with. A
token is the integer in which bit i weighs 2^i. Bits may depend on each other in any way, and a draw
is one softmax; but the matrix doubles with every bit, so that `GeneratorConfig` refuses more than
18. Source: paper Table 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GeneratorConfig
from model.sampling import Unmasking, guide, pick_token


class LinearHead(nn.Module):
    """Predicts a token as one class of 2^k."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.bits_per_token = config.bits_per_token
        self.token_logits = nn.Linear(config.head_width, 2**config.bits_per_token)

    def forward(self, latent: Tensor) -> Tensor:
        """Return float32 (or wider) logits (N, 2^k) of each value of a token; latent (N, W)."""
        logits: Tensor = self.token_logits(latent)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(
        self,
        bits: Tensor,
        latent: Tensor,
        mask: Tensor,  # noqa: ARG002  # no bit is ever seen
        mask_ratio: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Return the mean cross entropy of a token, divided by its bits; see `Head`."""
        return F.cross_entropy(self(latent), token_numbers(bits)) / self.bits_per_token

    def judge(
        self,
        bits: Tensor,
        latent: Tensor,
        mask: Tensor,  # noqa: ARG002  # no bit is ever seen
        mask_ratio: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return each token's cross entropy, and how many bits the likeliest one has right."""
        logits, tokens = self(latent), token_numbers(bits)  # (N, 2^k), (N,)
        nats = F.cross_entropy(logits, tokens, reduction="none")
        weights = 1 << torch.arange(self.bits_per_token, device=bits.device)
        differing = (logits.argmax(-1) ^ tokens)[:, None] & weights  # (N, k)
        return nats, (differing == 0).sum(-1)

    def first_logits(self, latent: Tensor, null_latent: Tensor, guidance: Tensor) -> Tensor:
        """Return logits (N, 2^k) with guidance (N,) applied."""
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
        return pick_token(logits, temperature, uniforms[:, 0])


def token_numbers(bits: Tensor) -> Tensor:
    """Return the integers that bits (…, k) make, bit i weighing 2^i: int64 (…)."""
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)
