"""Pure functions of sampling: guidance, noise, orders, unmasking schedules and one round of it.

Used by the head, `generate.py` and `engine.py`. Everything is per row, so that images with
different settings share a batch. Noise is counter-based: Philox4x32-10 keyed by an image's seed,
with the token, round and bit as counter, so that an image never depends on its neighbours, on when
it was drawn or on a generator's state. Sources: paper §3.4 and §4.2; Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011 (Philox).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 2  # the value of a bit that is not drawn yet

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
# The fourth counter word: what the random words are used for.
_PURPOSE_BITS = 0
_PURPOSE_ORDER = 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> Tensor:
    """Return four 32-bit random words, int64 (…, 4), for each broadcast counter and seed."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed, torch.zeros_like(seed)
    for _ in range(10):
        # int64 products wrap modulo 2**64, which keeps all the 64 bits that are needed.
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _WORD, (k1 + _PHILOX_KEY_STEPS[1]) & _WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def token_uniforms(
    seeds: Tensor, token_index: Tensor, num_rounds: int, bits_per_token: int
) -> Tensor:
    """Return the noise of one token per row: float32 (B, R, k, 3) in [0, 1).

    Shapes: seeds, token_index (B,), int64. The last axis holds the draws for bit = 0, for bit = 1
    and for the confidence; each is a multiple of 2**-24, so every value is exact in float32.
    """
    rounds = torch.arange(num_rounds, device=seeds.device)[None, :, None]
    bits = torch.arange(bits_per_token, device=seeds.device)[None, None, :]
    purpose = torch.full_like(bits, _PURPOSE_BITS)
    words = philox((bits, rounds, token_index[:, None, None], purpose), seeds[:, None, None])
    return (words[..., :3] >> 8).float() * 2.0**-24


def random_order(seed: int, num_tokens: int) -> Tensor:
    """Return the generation order that belongs to `seed`: a permutation, int64 (S,) on the CPU."""
    token = torch.arange(num_tokens)
    zero = torch.zeros_like(token)
    purpose = torch.full_like(token, _PURPOSE_ORDER)
    words = philox((token, zero, zero, purpose), torch.full_like(token, seed))
    # Signed 64-bit keys from two words: ties are as good as impossible, and stable besides.
    return torch.argsort((words[:, 0] << 32) | words[:, 1], stable=True)


def gumbel(uniforms: Tensor) -> Tensor:
    """Turn uniform noise into standard Gumbel noise, clamped as the published sampler does."""
    tiny = 1e-20
    return -(-uniforms.clamp_min(tiny).log()).clamp_min(tiny).log()


def linear_guidance(guidance_scale: Tensor, token_index: Tensor, num_tokens: int) -> Tensor:
    """Return the guidance of each row's token: 1 at the first, rising linearly towards the scale.

    Shapes: guidance_scale float (B,), token_index (B,) → (B,).
    """
    return 1 + (guidance_scale - 1) * token_index / num_tokens


def guide(logits: Tensor, null_logits: Tensor, guidance: Tensor) -> Tensor:
    """Apply guidance (N,) to logits (N, …): null + g (cond - null), but exactly cond at g = 1."""
    scale = guidance.view(-1, *[1] * (logits.dim() - 1))
    return logits + (scale - 1) * (logits - null_logits)


class Unmasking(NamedTuple):
    """The unmasking schedules of B rows, round by round; rows may differ in rounds.

    A row with fewer than R rounds is complete before the last ones, which leave it as it is.
    """

    mask_ratio: Tensor  # (B, R) share of bits masked before the round
    anneal: Tensor  # (B, R) what is left of the temperature
    still_masked: Tensor  # (B, R) bits masked after the round; 0 from the row's last round on

    @property
    def max_rounds(self) -> int:
        return self.mask_ratio.shape[1]


def unmasking(
    schedules: Sequence[tuple[int, ...]], device: torch.device | None = None
) -> Unmasking:
    """Tabulate `schedules`, one per row, all summing to the same number of bits."""
    num_bits, max_rounds = sum(schedules[0]), max(map(len, schedules))
    ratio, anneal, still_masked = [], [], []
    for schedule in schedules:
        rounds = [*schedule, *[0] * (max_rounds - len(schedule))]
        left = [num_bits - sum(rounds[:r]) for r in range(max_rounds + 1)]
        ratio.append([n / num_bits for n in left[:-1]])
        anneal.append([max(0.0, 1 - r / len(schedule)) for r in range(max_rounds)])
        still_masked.append(left[1:])
    return Unmasking(
        torch.tensor(ratio, device=device),
        torch.tensor(anneal, device=device),
        torch.tensor(still_masked, device=device),
    )


def pick_bits(logits: Tensor, temperature: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw every bit and return it with its confidence, noise added, (B, k) each.

    Shapes: logits (B, k, 2); temperature (B, 1); noise, Gumbel, (B, k, 3).
    """
    zero, one = (logits + temperature[..., None] * noise[..., :2]).unbind(-1)
    drawn = (one > zero).long()
    confidence = logits.gather(-1, drawn[..., None])[..., 0]
    return drawn, confidence + temperature * noise[..., 2]


def pick_token(logits: Tensor, temperature: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one of 2^k tokens per row and return its bits, int64 (B, k); bit i weighs 2^i.

    Shapes: logits (B, 2^k); temperature (B,), the likeliest token where it is 0; uniforms
    (B, k, 3). Bits are drawn from the highest down, each by its probability given those above it:
    the same distribution, from sums of pairs that come out alike in any batch and on any device.
    """
    num_bits, is_silent = uniforms.shape[1], temperature == 0
    below_best = (logits - logits.amax(-1, keepdim=True)).double()
    masses = [(below_best / temperature.masked_fill(is_silent, 1)[:, None]).exp()]
    for _ in range(num_bits - 1):  # masses[i]: of the values of bits i and above, (B, 2^(k - i))
        masses.append(masses[-1][:, ::2] + masses[-1][:, 1::2])
    # A uniform has 24 random bits; two of them make what comes once in a million exact as well.
    fine = uniforms[..., 0].double() + uniforms[..., 1].double() * 2.0**-24  # (B, k)
    drawn = torch.zeros_like(is_silent, dtype=torch.int64)
    for i in reversed(range(num_bits)):
        zero, one = (masses[i].gather(1, (2 * drawn + bit)[:, None])[:, 0] for bit in (0, 1))
        drawn = 2 * drawn + (fine[:, i] * (zero + one) < one)
    drawn = torch.where(is_silent, logits.argmax(-1), drawn)
    return drawn[:, None] >> torch.arange(num_bits, device=logits.device) & 1


def remask(bits: Tensor, confidence: Tensor, num_masked: Tensor, still_masked: Tensor) -> Tensor:
    """Mask the least confident bits of each row again, and all that tie with the last of them.

    Shapes: bits (B, k); confidence (B, k), +∞ where decided before; num_masked (B,), masked before
    this round; still_masked (B,), how many to mask, 0 for a row that is complete.
    """
    count = still_masked.minimum(num_masked - 1).clamp_min(1)
    threshold = confidence.sort(-1).values.gather(-1, count[:, None] - 1)
    unsure = (confidence <= threshold) & (still_masked > 0)[:, None]
    return torch.where(unsure, MASK, bits)
