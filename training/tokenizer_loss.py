"""What the tokenizer is trained to minimise: a weighted sum of reconstruction losses.

Called by the tokenizer's stage. Each loss is a function of the reconstruction and the image, so a
perceptual or adversarial term is one more weight and one more line. Source: paper §3.2; weights of
the published training: 1.0 L2 and 0.1 L1.
"""

from dataclasses import asdict, dataclass

from torch import Tensor
from torch.nn import functional as F

from model.config import JsonConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerLossWeights(JsonConfig):
    """The weight of each loss; a loss of weight 0 is not computed."""

    l2: float = 1.0
    l1: float = 0.1

    def __post_init__(self) -> None:
        weights = asdict(self)
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"loss weights must be >= 0, and one of them > 0, got {weights}")


LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss}


def tokenizer_loss(
    reconstruction: Tensor, pixels: Tensor, weights: TokenizerLossWeights
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum, a scalar, and the value of each loss in it.

    Shapes: reconstruction, pixels (B, 3, height, width) in [-1, 1].
    """
    used = {name: weight for name, weight in asdict(weights).items() if weight}
    losses = {name: LOSSES[name](reconstruction, pixels) for name in used}
    total: Tensor = sum((used[name] * loss for name, loss in losses.items()), pixels.new_zeros(()))
    return total, {name: loss.item() for name, loss in losses.items()}
