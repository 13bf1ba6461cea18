"""The tokenizer's losses that look through a pretrained network.

Built by `tokenizer_run.py` for the weights that are not 0.
"""

from torch import Tensor
from torch.nn import functional as F

from model.image_encoder import Siglip2Encoder
from model.tokenizer import Tokenizer, TokenizerOutput
from training.errors import TrainingError
from training.tokenizer_loss import PIXEL_LOSSES, Loss, TokenizerLossWeights


def build_losses(weights: TokenizerLossWeights, tokenizer: Tokenizer) -> dict[str, Loss]:
    """Return the losses that `weights` name. Raises TrainingError for one that cannot be had."""
    losses = dict(PIXEL_LOSSES)
    if weights.clip:
        losses["clip"] = _clip_loss(tokenizer)
    lacking = sorted(set(weights.used) - set(losses)) + ["adversarial"] * bool(weights.adversarial)
    if lacking:
        raise TrainingError(
            f"this version has no network for {', '.join(f'losses.{name}' for name in lacking)}: "
            "set the weight to 0 to train without"
        )
    return losses


def _clip_loss(tokenizer: Tokenizer) -> Loss:
    encoder = tokenizer.encoder
    if not isinstance(encoder, Siglip2Encoder):
        raise TrainingError(
            "losses.clip compares with a frozen SigLIP2 tower, and this tokenizer has none: set "
            "losses.clip to 0"
        )

    def loss(output: TokenizerOutput, pixels: Tensor) -> Tensor:
        assert output.clip_prediction is not None
        return F.mse_loss(output.clip_prediction, encoder.clip_target(pixels))

    return loss
