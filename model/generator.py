"""A BAR generator: trunk and masked-bit head, as one module with one state dict.

Built by `checkpoint.py` for sampling and by the training module for `loss`. Sampling itself lives
in `generate.py` and `engine.py`. Source: paper §3.3–3.4.
"""

from torch import Tensor, nn

from model.config import GeneratorConfig
from model.masked_bit_head import MaskedBitHead
from model.transformer import Transformer


class Generator(nn.Module):
    """The trunk turns tokens into latents, the head turns each latent into the next token."""

    def __init__(self, config: GeneratorConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config, dropout)
        self.head = MaskedBitHead(config)

    def loss(
        self, bits: Tensor, class_ids: Tensor, order: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> Tensor:
        """Return the masked-bit loss of whole images, a scalar.

        Shapes: bits (B, S, k) in generation order; class_ids (B,), `config.null_class` where the
        label is dropped; order (B, S); mask (B, S, k), True where hidden; mask_ratio (B, S).
        """
        latents = self.trunk(bits, class_ids, order)  # (B, S, W)
        return self.head.loss(
            bits.flatten(0, 1), latents.flatten(0, 1), mask.flatten(0, 1), mask_ratio.flatten()
        )
