"""What every head does, and which head a configuration asks for.

A head turns the trunk's latent into the k bits of one token: the paper's masked-bit head, or one of
the two that it is compared with. `generator.py` and all that trains or samples calls them alike; a
head that draws all bits at once leaves aside what speaks of rounds. Source: paper Table 1.
"""

from typing import Protocol

from torch import Tensor

from model.bit_head import BitHead
from model.config import GeneratorConfig, HeadKind
from model.linear_head import LinearHead
from model.masked_bit_head import MaskedBitHead
from model.sampling import Unmasking


class Head(Protocol):
    """The verbs of a head, over N rows: latents are (N, W), bits (N, k) in {0, 1}."""

    bits_per_token: int

    def loss(self, bits: Tensor, latent: Tensor, mask: Tensor, mask_ratio: Tensor) -> Tensor:
        """Return what is minimised in training: nats per bit, a mean over all rows, a scalar.

        Shapes: mask (N, k), True where the head must not see a bit; mask_ratio (N,).
        """

    def judge(
        self, bits: Tensor, latent: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of each row's hidden bits, in nats, and how many of them are
        what the head takes for likeliest, both (N,); shapes as in `loss`. A head without rounds
        is judged by all bits."""

    def first_logits(self, latent: Tensor, null_latent: Tensor, guidance: Tensor) -> Tensor:
        """Return the logits, guidance (N,) applied, of tokens of which nothing is drawn yet."""

    def sample(
        self,
        latent: Tensor,
        null_latent: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        unmasking: Unmasking,
        uniforms: Tensor,
    ) -> Tensor:
        """Draw one token for each row and return its bits (N, k) int64.

        Shapes: guidance, temperature (N,); uniforms (N, R, k, 3) in [0, 1). Rows whose guidance is
        1 get the conditional logits exactly, whatever their null latent is.
        """


KINDS: dict[HeadKind, type[MaskedBitHead] | type[LinearHead] | type[BitHead]] = {
    "masked_bit": MaskedBitHead,
    "linear": LinearHead,
    "bit": BitHead,
}


def build_head(config: GeneratorConfig) -> Head:
    """Build the head that `config` names."""
    return KINDS[config.head](config)
