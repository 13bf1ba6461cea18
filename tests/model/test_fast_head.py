"""Facts of the fast head: the tokens of the plain one, with less work."""

import pytest
import torch
from torch import Tensor

from model.config import uniform_schedule
from model.fast_head import ROUNDS_PER_PRODUCT, FastHead
from model.masked_bit_head import MaskedBitHead
from model.sampling import MASK, token_uniforms, unmasking
from tests.model.tiny import tiny_config, tiny_generator

PATCH_SIZES = [1, 2, 4]  # 4, 16 and 64 bits a token


def tiny_head(patch_size: int, dtype: torch.dtype = torch.float64) -> MaskedBitHead:
    """Return the head of the tiny generator."""
    head = tiny_generator(tiny_config(patch_size), dtype).head
    assert isinstance(head, MaskedBitHead)
    return head


def random_latents(num_rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw latents with and without class, (2, N, W)."""
    latents = torch.randn(2, num_rows, 32, generator=torch.Generator().manual_seed(1))
    return latents.to(dtype)


class Draw:
    """One token of several rows with everything that settles it, for both heads."""

    def __init__(self, head: MaskedBitHead, schedules: list[tuple[int, ...]]) -> None:
        num_rows, self.head = len(schedules), head
        self.schedule = unmasking(schedules)
        self.latents = random_latents(num_rows)
        self.guidance = torch.tensor([1.0, 1.5, 4.0, 9.6, 2.0])[:num_rows]
        self.temperature = torch.tensor([1.0, 0.0, 2.5, 0.3, 1.0])[:num_rows]
        seeds = torch.arange(num_rows) + 7
        rounds, bits = self.schedule.max_rounds, head.bits_per_token
        self.uniforms = token_uniforms(seeds, torch.arange(num_rows), rounds, bits)

    def slowly(self, guidance: Tensor) -> Tensor:
        """Draw the bits with the plain head."""
        cond, null = self.latents
        temperature, schedule = self.temperature, self.schedule
        return self.head.sample(cond, null, guidance, temperature, schedule, self.uniforms)

    def fast(self, guidance: Tensor | None, spare_rounds: int = 0) -> Tensor:
        """Draw the bits with the fast head, which has room for some rounds more than needed."""
        rounds, num_rows = self.schedule.max_rounds, len(self.temperature)
        room = -(-rounds // ROUNDS_PER_PRODUCT) * ROUNDS_PER_PRODUCT + spare_rounds
        num_masked = torch.zeros(num_rows, room + 1, dtype=torch.int64)
        num_masked[:, 0] = self.head.bits_per_token
        num_masked[:, 1 : rounds + 1] = self.schedule.still_masked
        annealed = torch.zeros(num_rows, room, dtype=torch.float64)
        annealed[:, :rounds] = self.temperature[:, None] * self.schedule.anneal
        fast = FastHead(self.head, torch.float64)
        latents = self.latents[: 1 if guidance is None else 2]
        return fast.sample(latents, guidance, annealed, num_masked, self.uniforms)


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
@torch.no_grad()
def test_first_logits_are_the_plain_heads(patch_size: int) -> None:
    """With all bits masked, guided logits agree in float64 to 1e-10."""
    head, latents = tiny_head(patch_size), random_latents(5)
    guidance = torch.tensor([1.0, 1.5, 4.0, 9.6, 30.0])
    masked = torch.full((5, head.bits_per_token), MASK)
    expected = head.guided_logits(masked, latents[0], latents[1], torch.ones(5), guidance)
    fast = FastHead(head, torch.float64).first_logits(latents, guidance)
    assert (expected - fast).abs().max() < 1e-10


@pytest.mark.parametrize("num_masked", [0, 1, 7, 15, 16])
@torch.no_grad()
def test_logits_of_every_round_are_the_plain_heads(num_masked: int) -> None:
    """With some bits drawn already, and the mask ratio that belongs to it, logits agree too."""
    head, latents = tiny_head(2), random_latents(5)
    rng = torch.Generator().manual_seed(2)
    bits = torch.randint(0, 2, (5, 16), generator=rng)
    for row in bits:
        row[torch.randperm(16, generator=rng)[:num_masked]] = MASK
    guidance = torch.tensor([1.0, 1.5, 4.0, 9.6, 30.0])
    ratio = torch.full((5,), num_masked / 16)
    expected = head.guided_logits(bits, latents[0], latents[1], ratio, guidance)
    fast = FastHead(head, torch.float64)
    modulation = fast._modulate(latents, torch.full((5, 1), num_masked))[0]
    assert (expected - fast._logits(bits, modulation, guidance)).abs().max() < 1e-10


SCHEDULES = {
    1: [(4,), (2, 2), (1, 1, 2), (1, 1, 1, 1), (1, 3)],
    2: [(16,), (8, 8), (1,) * 16, uniform_schedule(16, 5), uniform_schedule(16, 9)],
    4: [(64,), (1,) * 64, uniform_schedule(64, 4), uniform_schedule(64, 7), (32, 32)],
}


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
@torch.no_grad()
def test_rows_of_any_schedule_draw_the_plain_heads_bits(patch_size: int) -> None:
    """Five rows of different numbers of rounds, guidance and temperature, in one call."""
    draw = Draw(tiny_head(patch_size), SCHEDULES[patch_size])
    assert torch.equal(draw.slowly(draw.guidance), draw.fast(draw.guidance))


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 8, 9])
@torch.no_grad()
def test_room_for_more_rounds_changes_nothing(rounds: int) -> None:
    """Schedules that end within a product of rounds, or before the room for them does."""
    draw = Draw(tiny_head(2), [uniform_schedule(16, rounds)] * 3)
    expected = draw.slowly(draw.guidance)
    for spare in (0, ROUNDS_PER_PRODUCT):
        assert torch.equal(expected, draw.fast(draw.guidance, spare))


@torch.no_grad()
def test_without_unconditional_latents_guidance_is_one() -> None:
    """Guidance None draws the bits of guidance 1, without the second branch."""
    draw = Draw(tiny_head(2), SCHEDULES[2])
    expected = draw.slowly(torch.ones(5))
    assert torch.equal(expected, draw.fast(None))
    assert torch.equal(expected, draw.fast(torch.ones(5)))
    assert not torch.equal(expected, draw.fast(draw.guidance))


@torch.no_grad()
def test_rounds_that_come_after_a_row_is_complete_leave_it() -> None:
    """A row drawn beside a longer schedule has the bits that it has alone."""
    head = tiny_head(2)
    alone, beside = Draw(head, [(8, 8)] * 2), Draw(head, [(8, 8), (1,) * 16])
    assert torch.equal(alone.fast(alone.guidance)[0], beside.fast(beside.guidance)[0])


@torch.no_grad()
def test_bfloat16_is_close() -> None:
    """Logits of the bfloat16 head are within a few roundings of the float32 ones, and float32."""
    head, latents = tiny_head(2, torch.float32), random_latents(5, torch.float32)
    guidance = torch.full((5,), 2.0)
    exact = FastHead(head, torch.float32).first_logits(latents, guidance)
    rounded = FastHead(head, torch.bfloat16).first_logits(latents.bfloat16(), guidance)
    assert torch.float32 == rounded.dtype
    error = (exact - rounded).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.05
