"""What all heads have in common: their contract, whatever they are made of."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from model.bit_head import BitHead
from model.config import GeneratorConfig, HeadKind, SamplingConfig, uniform_schedule
from model.generate import generate_bits
from model.heads import KINDS, Head
from model.linear_head import LinearHead, token_numbers
from model.masked_bit_head import MaskedBitHead
from model.sampling import token_uniforms, unmasking
from tests.model.tiny import fill_with_noise, request, tiny_config, tiny_generator

HEADS: list[HeadKind] = ["masked_bit", "linear", "bit"]
ONE_PASS: list[HeadKind] = ["linear", "bit"]
AnyHead = MaskedBitHead | LinearHead | BitHead
ALL_TOKENS = torch.tensor(list(itertools.product([0, 1], repeat=4)))  # (16, 4)


def tiny_head(kind: HeadKind, dtype: torch.dtype = torch.float64) -> AnyHead:
    """Build a head of 4 bits and width 32 with random weights."""
    head = KINDS[kind](tiny_config(head=kind))
    fill_with_noise(head)
    return head.to(dtype).eval()


def latents(batch: int, seed: int = 0) -> Tensor:
    """Draw latents (B, W)."""
    return torch.randn(batch, 32, generator=torch.Generator().manual_seed(seed)).double()


def hidden(batch: int) -> tuple[Tensor, Tensor]:
    """Return the mask and the ratio of tokens that are hidden whole."""
    return torch.ones(batch, 4, dtype=torch.bool), torch.ones(batch)


def draw(head: Head, latent: Tensor, null_latent: Tensor, guidance: float, warmth: float) -> Tensor:
    """Draw one token for each row, all bits in one round."""
    count = len(latent)
    seeds = torch.arange(count)
    return head.sample(
        latent,
        null_latent,
        torch.full((count,), guidance),
        torch.full((count,), warmth),
        unmasking([(4,)] * count),
        token_uniforms(seeds, torch.zeros_like(seeds), 1, 4),
    )


def exact_probabilities(kind: HeadKind, latent: Tensor, temperature: float) -> Tensor:
    """Return the probability of each of `ALL_TOKENS`, computed from the layer's weights alone."""
    weights = tiny_head(kind).state_dict()
    name = "token_logits" if kind == "linear" else "bit_logits"
    scores: Tensor = (weights[f"{name}.weight"] @ latent + weights[f"{name}.bias"]) / temperature
    if kind == "linear":
        return scores.softmax(0)[token_numbers(ALL_TOKENS)]
    return scores.reshape(4, 2).softmax(-1)[torch.arange(4), ALL_TOKENS].prod(-1)


def test_bit_i_weighs_two_to_the_i() -> None:
    """A linear head's classes are the integers of the bits, the first bit the lowest."""
    bits = torch.tensor([[[1, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 0, 1], [1, 1, 1, 1]]])
    assert [[1, 2], [8, 15]] == token_numbers(bits.to(torch.uint8)).tolist()


@pytest.mark.parametrize("kind", ONE_PASS)
@torch.no_grad()
def test_loss_is_the_cost_of_a_bit_by_hand(kind: HeadKind) -> None:
    """The loss is -log p of the tokens over all bits, p from the weights; so is the judgement, for
    which no bit is ever visible."""
    head, latent = tiny_head(kind), latents(16)
    rows = [exact_probabilities(kind, latent[row], 1.0)[row] for row in range(16)]
    cost = -torch.stack(rows).log()
    bits = ALL_TOKENS.to(torch.uint8)
    mask, ratio = hidden(16)
    assert cost.mean().item() / 4 == pytest.approx(head.loss(bits, latent, mask, ratio).item())
    for seen in (mask, ~mask):
        torch.testing.assert_close(cost, head.judge(bits, latent, seen, ratio)[0])


@torch.no_grad()
def test_judgement_of_masked_bits_is_the_sum_over_hidden_ones() -> None:
    """Two of four bits are hidden: their cross entropies count, and whether each is likeliest."""
    head, latent = tiny_head("masked_bit"), latents(8)
    assert isinstance(head, MaskedBitHead)
    bits = ALL_TOKENS[:8]
    mask, ratio = torch.tensor([[True, False, True, False]] * 8), torch.full((8,), 0.5)
    log_p = head(bits.masked_fill(mask, 2), latent, ratio).log_softmax(-1)
    chosen = log_p.gather(-1, bits[..., None])[..., 0]
    nats, num_right = head.judge(bits, latent, mask, ratio)
    torch.testing.assert_close(-(chosen[:, 0] + chosen[:, 2]), nats)
    is_right = chosen > math.log(0.5)
    assert torch.equal(is_right[:, 0].long() + is_right[:, 2], num_right)


@pytest.mark.parametrize("kind", ONE_PASS)
@torch.no_grad()
def test_bits_of_the_likeliest_token_count_as_right(kind: HeadKind) -> None:
    """Compared with what is drawn without temperature, bit by bit."""
    head, latent = tiny_head(kind), latents(16)
    likeliest = draw(head, latent, latent, 1.0, 0.0)
    expected = (likeliest == ALL_TOKENS).sum(-1)
    assert torch.equal(expected, head.judge(ALL_TOKENS, latent, *hidden(16))[1])
    assert len(set(expected.tolist())) > 2


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("kind", ONE_PASS)
@torch.no_grad()
def test_draws_have_the_exact_probabilities(kind: HeadKind, temperature: float) -> None:
    """Of 40,000 tokens drawn from one latent, chi square over the 16 values is below what one in
    ten thousand experiments exceeds, and the fixed seeds make it the same experiment each time."""
    count, latent = 40_000, 0.3 * latents(1)[0]
    rows = latent.expand(count, -1)
    drawn = token_numbers(draw(tiny_head(kind), rows, rows, 1.0, temperature))
    expected = torch.zeros(16, dtype=torch.float64)
    expected[token_numbers(ALL_TOKENS)] = exact_probabilities(kind, latent, temperature)
    assert expected.min() * count > 5
    counts = drawn.bincount(minlength=16)
    chi_square = ((counts - count * expected) ** 2 / (count * expected)).sum().item()
    assert chi_square < 44.3  # of 15 degrees of freedom


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_guidance_of_one_is_the_conditional_head(kind: HeadKind) -> None:
    """The null latent has no say at 1, in logits and in bits; above 1 it has."""
    head, latent = tiny_head(kind), latents(32)
    one, two = torch.ones(32), torch.full((32,), 2.0)
    plain, far = head.first_logits(latent, latent, one), 100 * latents(32, 1)
    assert torch.equal(plain, head.first_logits(latent, far, one))
    moved = head.first_logits(latent, latents(32, 1), two)
    null = head.first_logits(latents(32, 1), latent, one)
    torch.testing.assert_close(moved, 2 * plain - null)
    bits = draw(head, latent, latent, 1.0, 1.0)
    assert torch.equal(bits, draw(head, latent, far, 1.0, 1.0))
    assert not torch.equal(bits, draw(head, latent, far, 2.0, 1.0))


@pytest.mark.parametrize("kind", ONE_PASS)
@torch.no_grad()
def test_without_temperature_the_likeliest_token_is_drawn(kind: HeadKind) -> None:
    """At temperature 0 a token is the one of the largest probability."""
    head, latent = tiny_head(kind), latents(16)
    drawn = draw(head, latent, latent, 1.0, 0.0)
    for row in range(16):
        best = exact_probabilities(kind, latent[row], 1.0).argmax()
        assert torch.equal(ALL_TOKENS[best], drawn[row])


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_reaches_every_weight_and_the_latent(kind: HeadKind) -> None:
    """The loss moves every parameter of the head, and the trunk through its latent."""
    head, latent = tiny_head(kind), latents(16).requires_grad_()
    mask = torch.rand(16, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    head.loss(ALL_TOKENS, latent, mask, torch.full((16,), 0.5)).backward()
    assert [] == [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert latent.grad is not None
    assert latent.grad.abs().amax(-1).min() > 0


@pytest.mark.parametrize("kind", ONE_PASS)
def test_logits_are_float32_at_least(kind: HeadKind) -> None:
    """A bfloat16 head returns float32 logits, a float64 head float64."""
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        latent = latents(2).to(dtype)
        logits = tiny_head(kind, dtype).first_logits(latent, latent, torch.ones(2, dtype=dtype))
        assert expected == logits.dtype


@pytest.mark.parametrize("kind", ONE_PASS)
def test_images_follow_from_their_requests_alone(kind: HeadKind) -> None:
    """Drawn together or one by one, every image has the same bits, and the seed decides them."""
    generator = tiny_generator(tiny_config(head=kind))
    images = [
        request(
            class_id=n % 5,
            seed=n,
            guidance_scale=[1.0, 4.0][n % 2],
            temperature=[0.0, 1.0, 2.5][n % 3],
            unmask_schedule=(4,),
            order="random" if n % 2 else "raster",
        )
        for n in range(6)
    ]
    together = generate_bits(generator, images)
    alone = torch.cat([generate_bits(generator, [image]) for image in images])
    assert torch.equal(together, alone)
    other = generate_bits(generator, [request(class_id=1, seed=77, unmask_schedule=(4,))])
    assert not torch.equal(
        other, generate_bits(generator, [request(class_id=1, unmask_schedule=(4,))])
    )


@pytest.mark.parametrize("kind", ONE_PASS)
def test_schedules_of_several_rounds_are_refused_before_drawing(kind: HeadKind) -> None:
    """The message says which schedule there is."""
    generator = tiny_generator(tiny_config(head=kind))
    with pytest.raises(
        ValueError, match=rf"{kind} head draws a token at once.*\[4\], got \[1, 3\]"
    ):
        generate_bits(generator, [request(unmask_schedule=(1, 3))])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("head_width", "head_depth"), [(8, 1), (24, 5), (96, 2)])
def test_heads_of_any_size_draw(kind: HeadKind, head_width: int, head_depth: int) -> None:
    """The latent's width and, of a masked-bit head, the number of blocks are free."""
    config = GeneratorConfig(
        **{
            **tiny_config(head=kind).to_json(),
            "head_width": head_width,
            "head_depth": head_depth if kind == "masked_bit" else 0,
        }
    )
    schedule = uniform_schedule(4, 2 if kind == "masked_bit" else 1)
    sampling = SamplingConfig(guidance_scale=2.0, temperature=1.0, unmask_schedule=schedule)
    sampling.check_for(config)
    bits = generate_bits(tiny_generator(config), [request(unmask_schedule=schedule)])
    assert {0, 1} == set(bits.unique().tolist())
