"""The tiny BAR of the tests: 2 layers, width 32, a 4×4 grid, 4 bits per cell.

Weights are random and larger than an initialisation's, so that class, guidance, noise and every bit
already drawn change what comes next: a test that mixes two images up then fails.
"""

import torch
from torch import nn

from model.config import (
    GeneratorConfig,
    HeadKind,
    ImageRequest,
    Order,
    SamplingConfig,
    TokenizerConfig,
    VitConfig,
)
from model.generator import Generator
from model.tokenizer import Tokenizer

NUM_CLASSES = 5


def tiny_config(
    patch_size: int = 1,
    class_repeat: int = 3,
    num_heads: int = 2,
    bits_per_latent: int = 4,
    head: HeadKind = "masked_bit",
) -> GeneratorConfig:
    """Return an architecture of 16, 4 or 1 tokens, for patch sizes 1, 2 and 4."""
    return GeneratorConfig(
        grid_size=4,
        patch_size=patch_size,
        bits_per_latent=bits_per_latent,
        width=32,
        depth=2,
        num_heads=num_heads,
        num_classes=NUM_CLASSES,
        class_repeat=class_repeat,
        head=head,
        head_width=32,
        head_depth=2 if head == "masked_bit" else 0,
    )


def tiny_tokenizer_config(grid_size: int = 4, bits_per_latent: int = 4) -> TokenizerConfig:
    """Return a tokenizer of 2×2 pixels per cell, which decodes what `tiny_config` draws."""
    vit = VitConfig(width=32, depth=2, num_heads=2, mlp_width=64)
    return TokenizerConfig(
        image_size=2 * grid_size,
        patch_size=2,
        bits_per_latent=bits_per_latent,
        encoder_kind="vit",
        encoder=vit,
        decoder=vit,
        encoder_table_size=grid_size,
    )


def tiny_generator(
    config: GeneratorConfig | None = None, dtype: torch.dtype = torch.float64
) -> Generator:
    """Build a generator with random weights, ready to sample."""
    generator = Generator(config or tiny_config())
    fill_with_noise(generator)
    return generator.to(dtype).eval()


def tiny_tokenizer(
    config: TokenizerConfig | None = None, dtype: torch.dtype = torch.float64
) -> Tokenizer:
    """Build a tokenizer with random weights, encoder included."""
    tokenizer = Tokenizer(config or tiny_tokenizer_config())
    fill_with_noise(tokenizer)
    return tokenizer.to(dtype).eval()


def request(
    class_id: int = 0,
    seed: int = 0,
    guidance_scale: float = 4.0,
    temperature: float = 1.0,
    unmask_schedule: tuple[int, ...] = (1, 1, 2),
    order: Order = "raster",
) -> ImageRequest:
    """Return an image's request with defaults that fit the tiny BAR of patch size 1."""
    sampling = SamplingConfig(
        guidance_scale=guidance_scale,
        temperature=temperature,
        unmask_schedule=unmask_schedule,
        order=order,
    )
    return ImageRequest(class_id=class_id, seed=seed, sampling=sampling)


def fill_with_noise(module: nn.Module, seed: int = 0) -> None:
    """Replace every weight: gains around 1, small biases, the rest of unit gain."""
    rng = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=rng)
        if value.dim() == 1:
            is_gain = name.endswith("weight")
            value.copy_(1 + 0.1 * noise if is_gain else 0.1 * noise)
        elif value.dim() == 3 or name.endswith(("class_embed.weight", "bit_embed.weight")):
            value.copy_(noise)
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
