"""A BAR generator: trunk and head, as one module with one state dict.

Built by `checkpoint.py` for sampling and by the training module for `loss`. Sampling itself lives
in `generate.py` and `engine.py`. Source: paper §3.3–3.4.
"""

from torch import Tensor, nn

from model.config import GeneratorConfig
from model.heads import Head, build_head
from model.transformer import Transformer


class Generator(nn.Module):
    """The trunk turns tokens into latents, the head turns each latent into the next token."""

    def __init__(self, config: GeneratorConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config, dropout)
        self.head: Head = build_head(config)

    def loss(
        self, bits: Tensor, class_ids: Tensor, order: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> Tensor:
        """Return the head's loss of whole images, nats per bit, a scalar.

        Shapes: bits (B, S, k) in generation order; class_ids (B,), `config.null_class` where the
        label is dropped; order (B, S); mask (B, S, k), True where hidden; mask_ratio (B, S).
        """
        latents = self.trunk(bits, class_ids, order)  # (B, S, W)
        return self.head.loss(
            bits.flatten(0, 1), latents.flatten(0, 1), mask.flatten(0, 1), mask_ratio.flatten()
        )

    def judge(
        self, bits: Tensor, class_ids: Tensor, order: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of each token's hidden bits, in nats, and how many of them are
        what the head takes for likeliest, both (B, S); shapes as in `loss`."""
        latents = self.trunk(bits, class_ids, order)  # (B, S, W)
        nats, num_right = self.head.judge(
            bits.flatten(0, 1), latents.flatten(0, 1), mask.flatten(0, 1), mask_ratio.flatten()
        )
        return nats.reshape(bits.shape[:2]), num_right.reshape(bits.shape[:2])
