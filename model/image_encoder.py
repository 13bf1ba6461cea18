"""The tokenizer's encoders: SigLIP2 for the published models, a small ViT for those from scratch.

Called by `tokenizer.py` in training and pretokenization; serving never builds an encoder. SigLIP2
comes from transformers, which is therefore optional and imported on construction. Source: paper
§3.2; SigLIP 2, arXiv 2502.14786.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TokenizerConfig
from model.layers import VitBlock


class VitEncoder(nn.Module):
    """A plain vision transformer, for tokenizers trained from scratch."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        vit = config.encoder
        self.patch_embed = nn.Linear(3 * config.patch_size**2, vit.width)
        self.position_embed = nn.Parameter(
            torch.randn(config.grid_size**2, vit.width) * vit.width**-0.5
        )
        self.blocks = nn.ModuleList(
            VitBlock(vit.width, vit.num_heads, vit.mlp_width) for _ in range(vit.depth)
        )
        self.norm = nn.LayerNorm(vit.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] → (B, L, width)."""
        x = self.patch_embed(fold_patches(pixels, self.patch_size)) + self.position_embed
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features


class Siglip2Encoder(nn.Module):
    """A trainable copy of SigLIP2's transformer over its frozen patch embedding.

    The frozen original stays beside it and gives the target of the CLIP loss. Weights are random
    after construction: they come from a tokenizer's checkpoint or from the pretrained tower.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size, self.side = config.patch_size, config.grid_size
        self.frozen = _siglip2_tower(config).requires_grad_(False)
        self.trained = copy.deepcopy(self.frozen.encoder).requires_grad_(True)
        self.trained_norm = copy.deepcopy(self.frozen.post_layernorm).requires_grad_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] → (B, L, width) features to be quantized."""
        features: Tensor = self.trained_norm(_run_layers(self.trained, self._embed(pixels)))
        return features

    def clip_target(self, pixels: Tensor) -> Tensor:
        """Return the frozen tower's features (B, L, width), without gradient."""
        with torch.no_grad():
            hidden = _run_layers(self.frozen.encoder, self._embed(pixels))
            target: Tensor = self.frozen.post_layernorm(hidden)
        return target

    def _embed(self, pixels: Tensor) -> Tensor:
        patches = fold_patches(pixels, self.patch_size)
        shapes = torch.tensor([[self.side, self.side]] * len(pixels), device=pixels.device)
        embedded: Tensor = self.frozen.embeddings(patches, shapes)
        return embedded


def fold_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """(B, 3, g·p, g·p) → (B, g·g, p·p·3), each patch flattened (row, column, colour)."""
    batch, _, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    x = pixels.reshape(batch, 3, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def _siglip2_tower(config: TokenizerConfig) -> Any:
    try:
        from transformers import Siglip2VisionConfig, Siglip2VisionModel  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            "this tokenizer's encoder is SigLIP2, which needs transformers: "
            "pip install 'bar-serve[siglip2]'"
        ) from error
    vit = config.encoder
    return Siglip2VisionModel(
        Siglip2VisionConfig(
            hidden_size=vit.width,
            intermediate_size=vit.mlp_width,
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.num_heads,
            num_patches=config.encoder_table_size**2,
            patch_size=config.patch_size,
            vision_use_head=False,
        )
    )


def _run_layers(encoder: Any, hidden: Tensor) -> Tensor:
    # Whole square images: no padding, hence no attention mask.
    output: Tensor = encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
    return output
