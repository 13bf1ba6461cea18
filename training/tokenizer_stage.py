"""Stage one: the tokenizer learns to reproduce images through a few bits.

Driven by `trainer.py`. Held-out L2 is what decides which weights are kept; beside it stand PSNR and
the entropy of the least used bit, since a bit that never changes is lost capacity and easy to miss.
Source: paper §3.2.
"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.quantizer import codes_to_bits
from model.tokenizer import Tokenizer, to_uint8
from training.pictures import save_pairs
from training.tokenizer_loss import TokenizerLossWeights, tokenizer_loss

logger = logging.getLogger(__name__)

DEAD_BIT_ENTROPY = 0.1
NUM_SHOWN = 20


class TokenizerStage:
    """Trains `model` on `pixels`, (N, 3, height, width) in [-1, 1]."""

    name = "tokenizer"
    objective = "l2"

    def __init__(
        self, model: Tokenizer, pixels: Tensor, held_out: Tensor, weights: TokenizerLossWeights
    ) -> None:
        self.model = model
        self.pixels, self.held_out, self.weights = pixels, held_out, weights
        self.num_examples = len(pixels)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        pixels = self.pixels[batch]
        return tokenizer_loss(self.model(pixels).reconstruction, pixels, self.weights)

    def validate(self, model: nn.Module) -> dict[str, float]:
        output = model(self.held_out)
        l2 = F.mse_loss(output.reconstruction.clamp(-1, 1), self.held_out).item()
        entropy = bit_entropies(codes_to_bits(output.codes))
        num_dead = int((entropy < DEAD_BIT_ENTROPY).sum())
        if num_dead:
            logger.warning(
                "%d of %d bits have an entropy below %g: they carry next to nothing",
                num_dead,
                len(entropy),
                DEAD_BIT_ENTROPY,
            )
        return {
            "l2": l2,
            "psnr": psnr(l2),
            "min_bit_entropy": entropy.min().item(),
            "dead_bits": num_dead,
        }

    def draw(self, model: nn.Module, path: Path) -> None:
        """Show held-out images above their reconstructions."""
        images = self.held_out[:NUM_SHOWN]
        reconstructed = model(images).reconstruction
        save_pairs(path, to_uint8(images).numpy(), to_uint8(reconstructed).numpy())


def bit_entropies(bits: Tensor) -> Tensor:
    """Return the entropy in bits of each channel of bits (B, L, bits_per_latent): 0 is dead."""
    p = bits.double().mean(dim=(0, 1))
    entropies: Tensor = (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)
    return entropies


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio, in dB, of images in [-1, 1]."""
    return 10 * math.log10(4 / mean_squared_error) if mean_squared_error else math.inf
