"""The BAR-FSQ tokenizer: pixels to bits and back.

Serving uses `decode_uint8` alone and builds no encoder; pretokenization uses `encode`; training
calls the module itself. Bits leave and enter as a raster grid of L latent cells; grouping cells
into the generator's tokens is `token_grid.py`'s work. Source: paper §3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import TokenizerConfig
from model.image_decoder import ImageDecoder
from model.image_encoder import Siglip2Encoder, VitEncoder
from model.quantizer import BinaryQuantizer, bits_to_codes, codes_to_bits


class TokenizerOutput(NamedTuple):
    """What one training step of the tokenizer looks at."""

    reconstruction: Tensor  # (B, 3, height, width), in about [-1, 1], not clamped
    features: Tensor  # (B, L, encoder width), before quantization
    codes: Tensor  # (B, L, bits_per_latent) of -1 and +1, straight-through
    clip_prediction: Tensor | None  # (B, L, encoder width), of tokenizers with a CLIP projector


class Tokenizer(nn.Module):
    """Encoder, binary quantizer and decoder. Without an encoder it decodes and nothing else."""

    def __init__(self, config: TokenizerConfig, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder: VitEncoder | Siglip2Encoder | None = None
        if with_encoder:
            is_siglip2 = config.encoder_kind == "siglip2"
            self.encoder = Siglip2Encoder(config) if is_siglip2 else VitEncoder(config)
        self.quantizer = BinaryQuantizer(
            config.bits_per_latent, config.encoder.width, config.decoder.width
        )
        self.decoder = ImageDecoder(config, with_encoder and config.has_clip_projector)

    def forward(self, pixels: Tensor) -> TokenizerOutput:
        """Encode, quantize and reconstruct pixels (B, 3, height, width) in [-1, 1]."""
        features = self.encode_features(pixels)
        codes = self.quantizer(features)
        cells = self.quantizer.embed(codes)
        if self.config.has_clip_projector:
            reconstruction, prediction = self.decoder.forward_with_clip(cells)
            return TokenizerOutput(reconstruction, features, codes, prediction)
        return TokenizerOutput(self.decoder(cells), features, codes, None)

    def encode_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] → (B, L, encoder width).

        Raises ValueError for pixels of another size and for a tokenizer built without encoder.
        """
        if self.encoder is None:
            raise ValueError("this tokenizer was loaded for decoding: load it with its encoder")
        expected = (3, self.config.image_size, self.config.image_size)
        if tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"pixels must be (B, {expected}), got {tuple(pixels.shape)}")
        features: Tensor = self.encoder(pixels)
        return features

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] → (B, L, bits_per_latent) uint8 bits."""
        return codes_to_bits(self.quantizer(self.encode_features(pixels)))

    @torch.no_grad()
    def decode(self, bits: Tensor) -> Tensor:
        """(B, L, bits_per_latent) bits → (B, 3, height, width), in about [-1, 1], not clamped."""
        pixels: Tensor = self.decoder(self.quantizer.embed(bits_to_codes(bits)))
        return pixels

    def decode_uint8(self, bits: Tensor) -> Tensor:
        """(B, L, bits_per_latent) bits → (B, height, width, 3) uint8."""
        return to_uint8(self.decode(bits))


def to_uint8(pixels: Tensor) -> Tensor:
    """(B, 3, height, width) in about [-1, 1] → (B, height, width, 3) uint8.

    Truncates instead of rounding, as the published evaluation does: FID depends on it.
    """
    scaled = ((pixels.float() + 1) / 2).clamp(0, 1) * 255
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
