"""Noise, orders, guidance and unmasking: each function against its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.sampling import (
    MASK,
    guide,
    gumbel,
    linear_guidance,
    philox,
    pick_bits,
    pick_token,
    random_order,
    remask,
    token_uniforms,
    unmasking,
)

WORD = 0xFFFFFFFF
Words = tuple[int, ...]
words = st.integers(0, WORD)


def philox_in_python(counter: Words, key: Words) -> Words:
    """Philox4x32-10 word by word, as Salmon et al. write it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def philox_words(counter: Words, seed: int) -> Words:
    """Draw one counter's words with the function under test."""
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    return tuple(philox((c0, c1, c2, c3), torch.tensor(seed)).tolist())


def uniforms(seed: int, token: int, num_rounds: int = 2, bits_per_token: int = 4) -> Tensor:
    """Draw one row's noise, (R, k, 3)."""
    return token_uniforms(torch.tensor([seed]), torch.tensor([token]), num_rounds, bits_per_token)[
        0
    ]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_gives_the_known_answers(counter: Words, key: Words, expected: Words) -> None:
    """The reference of these tests reproduces the vectors that Random123 publishes."""
    assert expected == philox_in_python(counter, key)


def test_philox_known_answer() -> None:
    """The published vector whose key a seed can express comes out of philox itself."""
    assert (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8) == philox_words((0,) * 4, 0)


@given(counter=st.tuples(words, words, words, words), seed=words)
def test_philox_equals_the_reference(counter: Words, seed: int) -> None:
    """For every counter and seed of 32 bits, int64 arithmetic loses no bit of the product."""
    assert philox_in_python(counter, (seed, 0)) == philox_words(counter, seed)


def test_philox_of_the_largest_words() -> None:
    """Products beyond 63 bits wrap without harm."""
    counter = (WORD,) * 4
    assert philox_in_python(counter, (WORD, 0)) == philox_words(counter, WORD)


@pytest.mark.parametrize(("seed", "token", "bit", "round_"), [(0, 0, 0, 0), (WORD, 1023, 3, 1)])
def test_uniforms_are_addressed_by_bit_round_and_token(
    seed: int, token: int, bit: int, round_: int
) -> None:
    """The counter is (bit, round, token, 0), the key the seed; the top 24 bits are the draw."""
    expected = philox_in_python((bit, round_, token, 0), (seed, 0))[:3]
    drawn = uniforms(seed, token)[round_, bit]
    assert [word >> 8 for word in expected] == (drawn.double() * 2**24).tolist()


def test_uniforms_lie_below_one() -> None:
    """Uniforms are float32 in [0, 1), multiples of 2**-24, never rounded up to 1."""
    drawn = token_uniforms(torch.arange(64), torch.arange(64), 8, 64)
    assert (torch.float32, (64, 8, 64, 3)) == (drawn.dtype, tuple(drawn.shape))
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    assert torch.equal(drawn * 2**24, (drawn * 2**24).round())


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    """Mean, variance and the correlation of the three draws are those of independent uniforms."""
    drawn = token_uniforms(torch.arange(100), torch.zeros(100, dtype=torch.long), 8, 64)
    flat = drawn.double().reshape(-1, 3)  # 51,200 of each draw
    assert 0.5 == pytest.approx(flat.mean().item(), abs=0.005)
    assert 1 / 12 == pytest.approx(flat.var().item(), abs=0.001)
    off_diagonal = flat.T.corrcoef() - torch.eye(3)
    assert off_diagonal.abs().max() < 0.02


def test_uniforms_do_not_depend_on_the_batch() -> None:
    """A row's noise is the same alone as among rows of other seeds and tokens."""
    seeds, tokens = torch.tensor([5, 7, 5, WORD]), torch.tensor([0, 3, 9, 1])
    batch = token_uniforms(seeds, tokens, 2, 4)
    for row, (seed, token) in enumerate(zip(seeds.tolist(), tokens.tolist(), strict=True)):
        assert torch.equal(uniforms(seed, token), batch[row])


def test_uniforms_of_fewer_rounds_or_bits_are_a_prefix() -> None:
    """Asking for more rounds or bits, as longer schedules do, leaves the first ones as they are."""
    assert torch.equal(uniforms(3, 2, 2, 4), uniforms(3, 2, 5, 9)[:2, :4])


def test_every_draw_of_an_image_differs() -> None:
    """No two of an image's draws, and none of two seeds, share their random words."""
    first = token_uniforms(torch.full((16,), 1), torch.arange(16), 4, 4)
    second = token_uniforms(torch.full((16,), 2), torch.arange(16), 4, 4)
    draws = torch.cat([first, second]).flatten(0, 2)  # (rows, 3)
    assert len(draws) == len(draws.unique(dim=0))


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 1024])
def test_random_order_is_a_permutation(num_tokens: int) -> None:
    """A random order names every cell once, and always the same for the same seed."""
    order = random_order(11, num_tokens)
    assert list(range(num_tokens)) == sorted(order.tolist())
    assert torch.equal(order, random_order(11, num_tokens))


def test_random_order_differs_by_seed() -> None:
    """A hundred seeds give a hundred orders, each far from raster."""
    orders = torch.stack([random_order(seed, 16) for seed in range(100)])
    assert 100 == len(orders.unique(dim=0))
    fixed = (orders == torch.arange(16)).float().mean()
    assert 1 / 16 == pytest.approx(fixed.item(), abs=0.03)


def test_random_order_is_part_of_the_contract() -> None:
    """The order of a seed never changes: an image drawn today can be drawn again."""
    keys = [philox_in_python((token, 0, 0, 1), (3, 0)) for token in range(8)]
    # The words are compared as one signed 64-bit number.
    signed = [((k[0] << 32 | k[1]) + 2**63) % 2**64 for k in keys]
    assert sorted(range(8), key=signed.__getitem__) == random_order(3, 8).tolist()


@given(st.floats(1e-6, 1 - 2**-24))
def test_gumbel_formula(uniform: float) -> None:
    """Gumbel noise is -log(-log u)."""
    expected = -math.log(-math.log(uniform))
    assert expected == pytest.approx(gumbel(torch.tensor([uniform], dtype=torch.float64)).item())


def test_gumbel_is_finite_at_both_ends() -> None:
    """Zero, and the float next to one, give finite noise."""
    ends = gumbel(torch.tensor([0.0, 1 - 2**-24]))
    assert ends.isfinite().all()
    assert -math.log(-math.log(1e-20)) == pytest.approx(ends[0].item(), rel=1e-6)


def test_linear_guidance_rises_from_one() -> None:
    """Guidance is 1 at the first token and rises by the same amount with every token."""
    scale = torch.full((4,), 9.0)
    expected = [1.0, 3.0, 5.0, 7.0]
    assert expected == linear_guidance(scale, torch.arange(4), 4).tolist()


def test_guidance_of_one_stays_one() -> None:
    """A scale of 1 is guidance 1 at every token, exactly."""
    assert [1.0] * 7 == linear_guidance(torch.ones(7), torch.arange(7), 7).tolist()


def test_unmasking_of_rows_with_different_rounds() -> None:
    """Each row follows its own schedule; a row that is complete early has nothing left to mask."""
    table = unmasking([(1, 1, 2), (4,), (2, 2)])
    assert 3 == table.max_rounds
    assert [[1.0, 0.75, 0.5], [1.0, 0.0, 0.0], [1.0, 0.5, 0.0]] == table.mask_ratio.tolist()
    assert [[3, 2, 0], [0, 0, 0], [2, 0, 0]] == table.still_masked.tolist()
    expected = [[1.0, 2 / 3, 1 / 3], [1.0, 0.0, 0.0], [1.0, 0.5, 0.0]]
    np.testing.assert_allclose(table.anneal, expected, rtol=1e-6)


@given(st.data())
def test_unmasking_row_does_not_depend_on_its_neighbours(data: st.DataObject) -> None:
    """A row's own rounds are tabulated alike alone and beside longer or shorter schedules."""
    parts = st.lists(st.integers(1, 8), min_size=1, max_size=8).map(
        lambda cuts: tuple(sorted(cuts))
    )
    schedule = data.draw(parts)
    bits = sum(schedule)
    table = unmasking([schedule, (1,) * bits, (bits,)])
    alone = unmasking([schedule])
    for together, single in zip(table, alone, strict=True):
        assert torch.equal(single[0], together[0, : len(schedule)])
    assert not table.still_masked[0, len(schedule) - 1 :].any()


def test_pick_bits_without_temperature_is_argmax() -> None:
    """At temperature 0 noise has no say: the larger logit wins, 0 in a tie."""
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]])
    noise = torch.tensor([[[9.0, -9.0, 9.0], [-9.0, 9.0, 9.0], [-9.0, 9.0, 9.0]]])
    drawn, confidence = pick_bits(logits, torch.zeros(1, 1), noise)
    assert [[1, 0, 0]] == drawn.tolist()
    assert [[1.0, 1.0, 2.0]] == confidence.tolist()


def test_pick_bits_adds_noise_to_value_and_confidence() -> None:
    """The first two draws decide the bit; the third moves the noiseless logit of that bit."""
    logits = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]])
    noise = torch.tensor([[[1.0, 0.0, 4.0], [0.0, 1.0, -4.0]]])
    drawn, confidence = pick_bits(logits, torch.tensor([[2.0]]), noise)
    assert [[0, 1]] == drawn.tolist()
    assert [[0.0 + 8.0, 0.0 - 8.0]] == confidence.tolist()


def test_pick_bits_frequencies_are_the_softmax() -> None:
    """At temperature 1, Gumbel noise draws each bit with its softmax probability."""
    seeds = torch.arange(20_000)
    noise = gumbel(token_uniforms(seeds, torch.zeros_like(seeds), 1, 1))[:, 0]
    logits = torch.tensor([[[0.0, 1.0]]]).expand(len(seeds), 1, 2)
    drawn, _ = pick_bits(logits, torch.ones(len(seeds), 1), noise)
    assert 1 / (1 + math.exp(-1)) == pytest.approx(drawn.double().mean().item(), abs=0.01)


def tokens_of(bits: Tensor) -> Tensor:
    """Return the integers that bits (B, k) make."""
    return (bits << torch.arange(bits.shape[1])).sum(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_pick_token_frequencies_are_the_softmax(temperature: float) -> None:
    """Of 100,000 draws among 64 tokens, chi square is what 63 degrees of freedom allow."""
    count, num_bits = 100_000, 6
    logits = 2 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(count)
    uniforms = token_uniforms(seeds, torch.zeros_like(seeds), 1, num_bits)[:, 0]
    warmth = torch.full((count,), temperature)
    drawn = tokens_of(pick_token(logits.expand(count, -1), warmth, uniforms))
    expected = count * (logits[0].double() / temperature).softmax(0)
    chi_square = ((drawn.bincount(minlength=64) - expected) ** 2 / expected).sum().item()
    assert 63 - 4 * 63**0.5 < chi_square < 63 + 4 * (2 * 63) ** 0.5


def test_pick_token_draws_what_comes_once_in_a_billion() -> None:
    """A token of probability 1e-9 is drawn where the uniform lies below that, and only there: one
    uniform of 24 bits could not tell."""
    logits = torch.tensor([[0.0, math.log(1e-9)]], dtype=torch.float64)
    rare, usual = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    usual[..., 1] = 2.0**-4  # 2^-28 in all, above 1e-9
    one = torch.ones(1)
    assert [[1]] == pick_token(logits, one, rare).tolist()
    assert [[0]] == pick_token(logits, one, usual).tolist()


def test_pick_token_without_temperature_takes_the_likeliest() -> None:
    """At temperature 0 noise has no say; the lowest number wins a tie; bit i weighs 2^i."""
    logits = torch.zeros(3, 8)
    logits[0, 6] = 1.0
    logits[1, 3] = -1.0
    logits[2, [2, 5]] = 7.0
    uniforms = token_uniforms(torch.arange(3), torch.arange(3), 1, 3)[:, 0]
    drawn = pick_token(logits, torch.zeros(3), uniforms)
    assert [[0, 1, 1], [0, 0, 0], [0, 1, 0]] == drawn.tolist()
    assert torch.equal(drawn, pick_token(logits, torch.zeros(3), 1 - 2**-24 - uniforms))


def test_pick_token_is_the_same_in_any_batch() -> None:
    """Rows of different temperatures draw together what they draw alone."""
    rng, seeds = torch.Generator().manual_seed(1), torch.arange(12)
    logits = 3 * torch.randn(12, 16, generator=rng)
    uniforms = token_uniforms(seeds, seeds, 1, 4)[:, 0]
    temperature = torch.tensor([0.0, 0.3, 1.0, 10.0]).repeat(3)
    together = pick_token(logits, temperature, uniforms)
    for row in range(12):
        one = slice(row, row + 1)
        assert torch.equal(together[one], pick_token(logits[one], temperature[one], uniforms[one]))


def test_pick_token_stays_finite_at_the_ends() -> None:
    """Logits far apart and the lowest temperatures give the likeliest token, and no NaN."""
    logits = torch.tensor([[0.0, 1e30, -1e30, 5.0]])
    uniforms = torch.full((1, 2, 3), 1 - 2.0**-24)
    for temperature in (1e-30, 1e-3, 10.0):
        assert [[1, 0]] == pick_token(logits, torch.tensor([temperature]), uniforms).tolist()


def test_guidance_of_one_is_conditional_to_the_last_bit() -> None:
    """And above one it moves away from the logits without class, row by row, of any shape."""
    rng = torch.Generator().manual_seed(2)
    for shape in ((2, 8), (2, 4, 2)):
        logits, null = torch.randn(2, *shape, generator=rng)
        guided = guide(logits, 1e6 * null, torch.tensor([1.0, 3.0]))
        assert torch.equal(logits[0], guided[0])
        torch.testing.assert_close(guided[1], 3 * logits[1] - 2 * 1e6 * null[1])


def remask_row(bits: list[int], confidence: list[float], masked: int, still: int) -> list[int]:
    """Remask a single row."""
    result: list[int] = remask(
        torch.tensor([bits]),
        torch.tensor([confidence]),
        torch.tensor([masked]),
        torch.tensor([still]),
    )[0].tolist()
    return result


def test_remask_hides_the_least_confident() -> None:
    """As many bits as asked for, those of the lowest confidence, are masked again."""
    assert [MASK, 1, MASK, 0] == remask_row([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.5], 4, 2)


def test_remask_hides_all_ties() -> None:
    """Bits as unsure as the last one to be masked are masked with it, as published."""
    assert [MASK, 1, MASK, MASK] == remask_row([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.2], 4, 2)


def test_remask_decides_at_least_one_bit() -> None:
    """However many are asked for, the most confident of the masked bits is decided."""
    assert [MASK, 1, MASK, MASK] == remask_row([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.3], 4, 4)


def test_remask_leaves_a_complete_row_alone() -> None:
    """A row with nothing left to mask keeps every bit, whatever its confidence."""
    assert [0, 1, 1, 0] == remask_row([0, 1, 1, 0], [0.1, 0.1, 0.1, 0.1], 4, 0)


@given(
    st.lists(
        st.one_of(st.just(math.inf), st.sampled_from([-2.0, -1.0, 0.0, 1.0])),
        min_size=2,
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_remask_equals_its_definition(confidence: list[float], still: int) -> None:
    """With any ties: the n lowest are masked, all that tie with the n-th, no decided bit."""
    undecided = sorted(value for value in confidence if value < math.inf)
    if len(undecided) < 2:
        return
    bits = [i % 2 for i in range(len(confidence))]
    threshold = undecided[max(1, min(still, len(undecided) - 1)) - 1] if still else -math.inf
    expected = [
        MASK if value <= threshold else bit for value, bit in zip(confidence, bits, strict=True)
    ]
    assert expected == remask_row(bits, confidence, len(undecided), still)
    assert all(
        new == old
        for new, old, value in zip(expected, bits, confidence, strict=True)
        if value == math.inf
    )
