"""The slow, obvious generator: one batch, whole images, every row at the same token.

Used by the command line, by training for samples, and as the twin that `engine.py` is tested
against. It keeps a cache but skips no work: both guidance branches are computed for every image.
Source: paper §3.4 (Algorithm 1) and §4.2.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import GeneratorConfig, ImageRequest
from model.generator import Generator
from model.kv_cache import KVCache
from model.sampling import Unmasking, linear_guidance, random_order, token_uniforms, unmasking
from model.token_grid import to_raster_order, tokens_to_cells
from model.tokenizer import Tokenizer

Noise = Callable[[int], Tensor]  # token index j -> uniforms (B, R, k, 3)


def generate(
    generator: Generator, tokenizer: Tokenizer, requests: Sequence[ImageRequest]
) -> NDArray[np.uint8]:
    """Draw one image per request: uint8 (B, height, width, 3).

    Raises ValueError for a class, seed or schedule that does not fit the generator.
    """
    images: NDArray[np.uint8] = tokenizer.decode_uint8(generate_bits(generator, requests)).numpy(
        force=True
    )
    return images


def generate_bits(generator: Generator, requests: Sequence[ImageRequest]) -> Tensor:
    """Draw the bits of one image per request: uint8 (B, L, bits_per_latent), raster order."""
    config, device = generator.config, generator.trunk.cls_token.device
    if not requests:
        raise ValueError("there is no image to draw: pass at least 1 request")
    for request in requests:
        request.check_for(config)
    sampling = [request.sampling for request in requests]
    seeds = torch.tensor([request.seed for request in requests], device=device)
    schedule = unmasking([settings.unmask_schedule for settings in sampling], device)

    def noise(token: int) -> Tensor:
        index = torch.full_like(seeds, token)
        return token_uniforms(seeds, index, schedule.max_rounds, config.bits_per_token)

    return draw_bits(
        generator,
        class_ids=torch.tensor([request.class_id for request in requests], device=device),
        order=torch.stack([generation_order(request, config) for request in requests]).to(device),
        guidance_scale=torch.tensor([s.guidance_scale for s in sampling], device=device),
        temperature=torch.tensor([s.temperature for s in sampling], device=device),
        schedule=schedule,
        noise=noise,
    )


def generation_order(request: ImageRequest, config: GeneratorConfig) -> Tensor:
    """Return the cells of one image in the order in which they are drawn, int64 (S,)."""
    if request.sampling.order == "random":
        return random_order(request.seed, config.num_tokens)
    return torch.arange(config.num_tokens)


@torch.no_grad()
def draw_bits(
    generator: Generator,
    *,
    class_ids: Tensor,
    order: Tensor,
    guidance_scale: Tensor,
    temperature: Tensor,
    schedule: Unmasking,
    noise: Noise,
) -> Tensor:
    """Draw images from tensors of settings and a source of noise.

    Shapes: class_ids, guidance_scale, temperature (B,); order (B, S) → uint8
    (B, L, bits_per_latent), raster order.
    """
    config, trunk, batch = generator.config, generator.trunk, len(class_ids)
    parameter = trunk.cls_token
    # Rows 0..B-1 are conditional, rows B..2B-1 the same images without their class.
    both_classes = torch.cat([class_ids, torch.full_like(class_ids, config.null_class)])
    both_orders, rows = order.repeat(2, 1), torch.arange(2 * batch, device=order.device)
    cache = KVCache(config, 2 * batch, parameter.device, parameter.dtype)
    latents = trunk.prefill(both_classes, both_orders, cache, rows)  # (2B, W)
    tokens: list[Tensor] = []
    for j in range(config.num_tokens):
        index = torch.full_like(class_ids, j)
        if tokens:
            both_tokens = tokens[-1].repeat(2, 1)
            latents = trunk.decode_step(
                both_tokens, index.repeat(2) - 1, both_classes, both_orders, cache, rows
            )
        guidance = linear_guidance(guidance_scale, index, config.num_tokens)
        latent, null_latent = latents.chunk(2)
        tokens.append(
            generator.head.sample(latent, null_latent, guidance, temperature, schedule, noise(j))
        )
    raster = to_raster_order(torch.stack(tokens, dim=1), order)
    return tokens_to_cells(raster, config.patch_size).to(torch.uint8)
