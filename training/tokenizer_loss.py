"""What the tokenizer is trained to minimise: a weighted sum of losses.

Called by the tokenizer's stage. Two losses compare pixels and need nothing; the others look through
a pretrained network (`perceptual_losses.py`), and the weight 0 does without both. Source: paper
§3.2; the weights of the published training are the tokenizer presets'.
"""

from collections.abc import Callable, Mapping
from typing import Self

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from model.tokenizer import TokenizerOutput
from training.section import Section

Loss = Callable[[TokenizerOutput, Tensor], Tensor]  # output and pixels to a scalar


class TokenizerLossWeights(Section):
    """The weight of each loss; a loss of weight 0 is not computed."""

    l2: float = 1.0
    l1: float = 0.1
    lpips: float = 0.0  # VGG16 features, learned weights
    convnext: float = 0.0  # ConvNeXt-S logits
    gram: float = 0.0  # VGG16 Gram matrices
    clip: float = 0.0  # the decoder's third block against the frozen SigLIP2 tower
    adversarial: float = 0.0  # DINO discriminator, from `discriminator.start` on

    @model_validator(mode="after")
    def _check(self) -> Self:
        weights = self.to_json()
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"loss weights must be >= 0, and one of them > 0, got {weights}")
        return self

    @property
    def used(self) -> dict[str, float]:
        """The weights that are not 0, without the adversarial one, which has a network to train."""
        return {n: w for n, w in self.to_json().items() if w and n != "adversarial"}


def _l2(output: TokenizerOutput, pixels: Tensor) -> Tensor:
    return F.mse_loss(output.reconstruction, pixels)


def _l1(output: TokenizerOutput, pixels: Tensor) -> Tensor:
    return F.l1_loss(output.reconstruction, pixels)


PIXEL_LOSSES: dict[str, Loss] = {"l2": _l2, "l1": _l1}


def tokenizer_loss(
    output: TokenizerOutput,
    pixels: Tensor,
    weights: TokenizerLossWeights,
    losses: Mapping[str, Loss] = PIXEL_LOSSES,
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum, a scalar, and the value of each loss in it.

    Shapes: pixels (B, 3, height, width) in [-1, 1]; the output is that of these pixels.
    """
    values = {name: losses[name](output, pixels) for name in weights.used}
    total: Tensor = sum(
        (weights.used[name] * value for name, value in values.items()), pixels.new_zeros(())
    )
    return total, {name: value.item() for name, value in values.items()}
