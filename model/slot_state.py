"""The engine's tensors: what the device knows of every slot, and one token step over them.

Nothing here asks the device for a value, so a step can be captured as a CUDA graph and replayed:
counters live on the device and advance there, and the host, which knows by arithmetic where every
slot stands, keeps its own. Tokens have one row more than there are tokens, and idle and full slots
write there: every slot computes, none is harmed.
"""

import torch
from torch import Tensor

from model.config import GeneratorConfig, ImageRequest
from model.fast_head import ROUNDS_PER_PRODUCT
from model.fast_heads import PreparedHead
from model.fast_trunk import FastTrunk, Prefix
from model.fp8 import saturate
from model.kv_cache import KVCache
from model.sampling import linear_guidance, token_uniforms, unmasking
from model.token_grid import to_raster_order, tokens_to_cells


class SlotState:
    """Tensors of N slots; their first axis is the slot unless said otherwise."""

    def __init__(
        self,
        config: GeneratorConfig,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
    ) -> None:
        self._config = config

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(num_slots, *shape, device=device, dtype=dtype)

        wide = torch.promote_types(dtype, torch.float32)
        self.cache = KVCache(config, 2 * num_slots, device, cache_dtype)
        self.latents = zeros(config.head_width).repeat(2, 1, 1)  # (2, N, W), conditional first
        self.tokens = zeros(config.num_tokens + 1, config.bits_per_token, dtype=torch.int8)
        self.order = zeros(config.num_tokens, dtype=torch.int64)
        self.drawn = torch.full_like(self.order[:, 0], config.num_tokens)  # tokens so far
        self.class_ids = zeros(dtype=torch.int64)
        self.seeds = zeros(dtype=torch.int64)
        self.guidance_scale = zeros(dtype=torch.float32)  # as in `generate.py`, whatever dtype
        # Round by round, with room for the longest schedule: one bit a round, or all in one.
        products = -(-config.bits_per_token // ROUNDS_PER_PRODUCT)
        self.max_rounds = products * ROUNDS_PER_PRODUCT if config.has_rounds else 1
        self.temperatures = zeros(self.max_rounds, dtype=wide)
        # Bits masked before each round, and 0 after the last.
        self.num_masked = zeros(self.max_rounds + 1, dtype=torch.int64)

    def write(
        self,
        slot: int,
        request: ImageRequest,
        order: Tensor,
        prefixes: tuple[Prefix, Prefix],
    ) -> None:
        """Put an image at its first token into `slot`; `prefixes`: with and without its class."""
        sampling = request.sampling
        rounds, schedule = len(sampling.unmask_schedule), unmasking([sampling.unmask_schedule])
        num_masked = torch.zeros(self.max_rounds + 1, dtype=torch.int64)
        num_masked[0] = self._config.bits_per_token
        num_masked[1 : rounds + 1] = schedule.still_masked[0]
        temperatures = sampling.temperature * schedule.anneal[0]
        # None of these waits for the step that a GPU is running; `tensor[slot] = number` would.
        self.order[slot].copy_(order, non_blocking=True)
        self.num_masked[slot].copy_(num_masked, non_blocking=True)
        self.temperatures[slot, :rounds].copy_(temperatures, non_blocking=True)
        self.class_ids[slot].fill_(request.class_id)
        self.seeds[slot].fill_(request.seed)
        self.guidance_scale[slot].fill_(sampling.guidance_scale)
        cache = self.cache.keys, self.cache.values
        for branch, prefix in enumerate(prefixes):
            length = prefix.keys.shape[2]
            for kept, part in zip(cache, (prefix.keys, prefix.values), strict=True):
                kept[:, 2 * slot + branch, :, :length] = saturate(part, kept.dtype)
            self.latents[branch, slot] = prefix.latent
        self.drawn[slot].zero_()

    def draw_tokens(
        self, head: PreparedHead, slots: slice, branches: int, num_rounds: int
    ) -> Tensor:
        """Draw the next token of each of N `slots`, store it and return it, (N, k)."""
        drawn, num_tokens = self.drawn[slots], self._config.num_tokens
        guidance = linear_guidance(self.guidance_scale[slots], drawn, num_tokens)
        tokens = head.sample(
            self.latents[:branches, slots],
            guidance if branches == 2 else None,
            self.temperatures[slots],
            self.num_masked[slots],
            token_uniforms(self.seeds[slots], drawn, num_rounds, self._config.bits_per_token),
        )
        self.tokens[slots][torch.arange(len(drawn), device=drawn.device), drawn] = tokens.to(
            torch.int8
        )
        return tokens

    def advance(
        self,
        trunk: FastTrunk,
        slots: slice,
        tokens: Tensor,
        modulations: Tensor | None,
        branches: int,
    ) -> None:
        """Read the newest tokens (N, k) of `slots`.

        Shapes: modulations of the conditional rows (N, depth, 6D), or None to compute them here.
        """
        newest = self.drawn[slots].clamp(max=self._config.num_tokens - 2)
        if modulations is None:
            sequence = self._config.prefix_len + newest
            modulations = trunk.modulations(self.class_ids[slots], sequence)
        both = [modulations, trunk.null_modulations[newest]][:branches]
        self.latents[:branches, slots] = trunk.decode_step(
            tokens, newest, self.order[slots], torch.stack(both), self.cache, slots
        )

    def count(self, slots: slice) -> None:
        """Note that `slots` have one token more; full ones stay full.

        In place, so that it cannot run out of memory: a step that fails has counted nothing.
        """
        self.drawn[slots].add_(1).clamp_(max=self._config.num_tokens)

    def free(self, slot: int) -> None:
        """Let `slot` draw into the row that no image reads."""
        self.drawn[slot].fill_(self._config.num_tokens)

    def codes(self, slot: int, num_drawn: int) -> Tensor:
        """Return the codes of one image's cells, (L, bits_per_latent): 0 where not drawn yet."""
        tokens = self.tokens[slot, :-1].float() * 2 - 1
        tokens[num_drawn:].zero_()
        raster = to_raster_order(tokens[None], self.order[slot][None])
        return tokens_to_cells(raster, self._config.patch_size)[0]
