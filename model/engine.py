"""Slots and steps: many images at once, each at its own position.

The worker drives it: `admit` puts an image into a free slot, `step` advances every occupied slot by
one token, `decode` turns full slots into pixels and frees them. Images join and leave at any step.

Every step computes all slots, occupied or not, at one fixed batch shape. That is what makes an
image the same, bit for bit, alone and in company: matrix products of another shape may round
differently. Not thread-safe: one thread drives an engine. Source: paper §3.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import ImageRequest, SamplingConfig
from model.generate import generation_order
from model.generator import Generator
from model.kv_cache import KVCache
from model.sampling import linear_guidance, token_uniforms, unmasking
from model.token_grid import to_raster_order, tokens_to_cells
from model.tokenizer import Tokenizer


@dataclass
class Slot:
    """What the host knows of one slot."""

    request: ImageRequest
    is_occupied: bool = False
    num_drawn: int = 0  # tokens


class Engine:
    """Draws up to `num_slots` images at a time."""

    def __init__(self, generator: Generator, tokenizer: Tokenizer, *, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self._generator, self._tokenizer = generator, tokenizer
        config, parameter = generator.config, generator.trunk.cls_token
        idle = SamplingConfig(
            guidance_scale=1.0, temperature=0.0, unmask_schedule=(config.bits_per_token,)
        )
        self._slots = [
            Slot(ImageRequest(class_id=0, seed=0, sampling=idle)) for _ in range(num_slots)
        ]
        self._device = parameter.device
        # Rows 0..N-1 of cache and latents are conditional, N..2N-1 the same without class.
        self._cache = KVCache(config, 2 * num_slots, self._device, parameter.dtype)
        self._latents = parameter.new_zeros(2 * num_slots, config.head_width, requires_grad=False)
        self._orders = torch.arange(config.num_tokens, device=self._device).repeat(num_slots, 1)
        self._tokens = self._orders[..., None].repeat(1, 1, config.bits_per_token) * 0

    @property
    def free_slots(self) -> int:
        """How many images `admit` takes right now."""
        return sum(not slot.is_occupied for slot in self._slots)

    @torch.no_grad()
    def admit(self, request: ImageRequest) -> int:
        """Put an image into a free slot and return the slot's number.

        Raises ValueError for a request that does not fit the model, and when no slot is free.
        """
        config = self._generator.config
        request.check_for(config)
        if not self.free_slots:
            raise ValueError(f"all {self.num_slots} slots are occupied: step until one is free")
        number = next(n for n, slot in enumerate(self._slots) if not slot.is_occupied)
        self._orders[number] = generation_order(request, config)
        classes = self._tensor([request.class_id, config.null_class])
        rows = self._tensor([number, self.num_slots + number])
        orders = self._orders[number].expand(2, -1)
        self._latents[rows] = self._generator.trunk.prefill(classes, orders, self._cache, rows)
        self._slots[number] = Slot(request, is_occupied=True)
        return number

    def cancel(self, number: int) -> None:
        """Free a slot without finishing its image; KeyError if it is not occupied."""
        self._occupied(number).is_occupied = False

    def progress(self, number: int) -> float:
        """Return the share of a slot's tokens that are drawn; KeyError if it is not occupied."""
        return self._occupied(number).num_drawn / self._generator.config.num_tokens

    @torch.no_grad()
    def step(self) -> list[int]:
        """Advance every occupied slot by one token; return the slots that became full.

        Full slots stay as they are until `decode` or `cancel` frees them.
        """
        num_tokens = self._generator.config.num_tokens
        advancing = [
            number
            for number, slot in enumerate(self._slots)
            if slot.is_occupied and slot.num_drawn < num_tokens
        ]
        if not advancing:
            return []
        tokens = self._draw_tokens()
        for number in advancing:
            slot = self._slots[number]
            self._tokens[number, slot.num_drawn] = tokens[number]
            slot.num_drawn += 1
        full = [n for n in advancing if self._slots[n].num_drawn == num_tokens]
        if len(full) < len(advancing):
            self._latents = self._advance_trunk(tokens)
        return full

    @torch.no_grad()
    def decode(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return the images of full slots, uint8 (B, height, width, 3), and free the slots.

        Raises KeyError for a slot that is not occupied, ValueError for one that is not full.
        """
        for number in numbers:
            if (progress := self.progress(number)) < 1:
                raise ValueError(f"slot {number} is not full: {progress:.0%} of it is drawn")
        raster = to_raster_order(self._tokens[list(numbers)], self._orders[list(numbers)])
        cells = tokens_to_cells(raster, self._generator.config.patch_size)
        # One image a call: a fixed shape again, so that pixels do not depend on company either.
        images = [self._tokenizer.decode_uint8(image[None]).numpy(force=True) for image in cells]
        for number in numbers:
            self._slots[number].is_occupied = False
        return np.concatenate(images)

    def _occupied(self, number: int) -> Slot:
        if not (0 <= number < self.num_slots and self._slots[number].is_occupied):
            raise KeyError(f"slot {number} holds no image")
        return self._slots[number]

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _draw_tokens(self) -> Tensor:
        """Return the next token of every slot, (N, k); of no use where no image advances."""
        config, requests = self._generator.config, [slot.request for slot in self._slots]
        sampling = [request.sampling for request in requests]
        drawn = self._tensor([slot.num_drawn for slot in self._slots])
        schedule = unmasking([settings.unmask_schedule for settings in sampling], self._device)
        seeds = self._tensor([request.seed for request in requests])
        noise = token_uniforms(seeds, drawn, schedule.max_rounds, config.bits_per_token)
        scale = self._tensor([settings.guidance_scale for settings in sampling])
        guidance = linear_guidance(scale, drawn, config.num_tokens)
        temperature = self._tensor([settings.temperature for settings in sampling])
        latent, null_latent = self._latents.chunk(2)
        return self._generator.head.sample(
            latent, null_latent, guidance, temperature, schedule, noise
        )

    def _advance_trunk(self, tokens: Tensor) -> Tensor:
        """Read each slot's newest token and return the latents (2N, W) of the next ones."""
        config = self._generator.config
        # Slots that do not advance are computed too, at any legal position, and never read.
        newest = [min(max(slot.num_drawn - 1, 0), config.num_tokens - 2) for slot in self._slots]
        classes = self._tensor([slot.request.class_id for slot in self._slots])
        return self._generator.trunk.decode_step(
            tokens.repeat(2, 1),
            self._tensor(newest).repeat(2),
            torch.cat([classes, torch.full_like(classes, config.null_class)]),
            self._orders.repeat(2, 1),
            self._cache,
            torch.arange(2 * self.num_slots, device=self._device),
        )
