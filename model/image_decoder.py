"""The tokenizer's decoder: a plain vision transformer from latent cells to pixels.

Called by `tokenizer.py`; three quarters of the arithmetic of a fast BAR image. The CLIP projector
hangs on its third block and is read in training alone. Source: paper §3.2.
"""

import torch
from torch import Tensor, nn

from model.config import TokenizerConfig
from model.layers import VitBlock


class ImageDecoder(nn.Module):
    """Latent cells in, pixels in about [-1, 1] out."""

    def __init__(self, config: TokenizerConfig, with_clip_projector: bool) -> None:
        super().__init__()
        self.config = config
        vit, width = config.decoder, config.decoder.width
        self.class_token = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.position_embed = nn.Parameter(
            torch.randn(config.grid_size**2 + 1, width) * width**-0.5
        )
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            VitBlock(width, vit.num_heads, vit.mlp_width) for _ in range(vit.depth)
        )
        self.norm_post = nn.LayerNorm(width)
        self.to_pixels = nn.Conv2d(width, 3 * config.patch_size**2, kernel_size=1)
        self.smooth = nn.Conv2d(3, 3, kernel_size=3, padding=1)
        if with_clip_projector:
            self.clip_projector = _clip_projector(config)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, L, width) → (B, 3, height, width) pixels."""
        x = self._embed(cells)
        for block in self.blocks:
            x = block(x)
        return self._to_image(x)

    def forward_with_clip(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels and the prediction (B, L, encoder width) of the frozen features."""
        x = self._embed(cells)
        for depth, block in enumerate(self.blocks):
            x = block(x)
            if depth == self.config.clip_layer:
                prediction = self.clip_projector(x[:, 1:])
        return self._to_image(x), prediction

    def _embed(self, cells: Tensor) -> Tensor:
        class_token = self.class_token.expand(len(cells), 1, -1)
        x = torch.cat([class_token, cells.to(class_token.dtype)], dim=1)  # (B, 1 + L, width)
        embedded: Tensor = self.norm_pre(x + self.position_embed)
        return embedded

    def _to_image(self, x: Tensor) -> Tensor:
        side = self.config.grid_size
        x = self.norm_post(x[:, 1:])  # the class token has done its work
        x = self.to_pixels(x.transpose(1, 2).reshape(len(x), -1, side, side))
        return self.smooth(unfold_patches(x, self.config.patch_size))  # type: ignore[no-any-return]


def unfold_patches(x: Tensor, patch_size: int) -> Tensor:
    """(B, p·p·3, g, g), channels laid out (row, column, colour) → (B, 3, g·p, g·p)."""
    batch, _, side, _ = x.shape
    x = x.reshape(batch, patch_size, patch_size, 3, side, side)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, 3, side * patch_size, side * patch_size)


def _clip_projector(config: TokenizerConfig) -> nn.Sequential:
    hidden = config.clip_projector_width
    return nn.Sequential(
        nn.Linear(config.decoder.width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, config.encoder.width),
    )
