"""The masked-bit head: what its logits depend on, its loss, and drawing a token."""

from itertools import product

import pytest
import torch
from torch import Tensor

from model.masked_bit_head import MaskedBitHead, MaskRatioEmbedding
from model.sampling import MASK, token_uniforms, unmasking
from tests.model.tiny import fill_with_noise, tiny_config


def tiny_head(dtype: torch.dtype = torch.float64) -> MaskedBitHead:
    """Build a head of 4 bits and width 32 with random weights."""
    head = MaskedBitHead(tiny_config())
    fill_with_noise(head)
    return head.to(dtype).eval()


def latents(batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Draw latents (B, W)."""
    return torch.randn(batch, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def targets(batch: int) -> tuple[Tensor, Tensor]:
    """Draw bits (B, k) and which of them are masked."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (batch, 4), generator=rng), torch.rand(batch, 4, generator=rng) < 0.5


class Rows:
    """One row for each combination of settings, with its own latents and noise."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        schedules = [(4,), (1, 3), (1, 1, 2), (1, 1, 1, 1)]
        settings = list(product([1.0, 4.0], [0.0, 1.0, 2.5], schedules))
        self.guidance = torch.tensor([guidance for guidance, _, _ in settings])
        self.temperature = torch.tensor([temperature for _, temperature, _ in settings])
        self.schedules = [schedule for _, _, schedule in settings]
        self.size = len(settings)
        self.latent, self.null_latent = latents(self.size, dtype), latents(self.size, dtype, 1)
        seeds = torch.arange(self.size)
        self.uniforms = token_uniforms(seeds, seeds, 4, 4)

    def sample(self, head: MaskedBitHead, rows: list[int] | None = None) -> Tensor:
        """Draw the tokens of `rows`, or of all, in one batch."""
        rows = list(range(self.size)) if rows is None else rows
        schedule = unmasking([self.schedules[row] for row in rows])
        return head.sample(
            self.latent[rows],
            self.null_latent[rows],
            self.guidance[rows],
            self.temperature[rows],
            schedule,
            self.uniforms[rows][:, : schedule.max_rounds],
        )


@torch.no_grad()
def test_rows_with_any_settings_share_a_batch() -> None:
    """Guidance, temperature and rounds of the others never change a row's bits."""
    head, rows = tiny_head(), Rows()
    together = rows.sample(head)
    for row in range(rows.size):
        assert torch.equal(rows.sample(head, [row])[0], together[row])


@torch.no_grad()
def test_sampled_bits_are_all_decided() -> None:
    """Whatever the schedule, every bit is 0 or 1 in the end, and both occur."""
    bits = Rows().sample(tiny_head())
    assert (torch.int64, 4) == (bits.dtype, bits.shape[1])
    assert {0, 1} == set(bits.unique().tolist())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guidance_of_one_ignores_the_null_latent(dtype: torch.dtype) -> None:
    """At guidance 1 the logits are the conditional ones to the last bit, and above 1 they move."""
    head, batch = tiny_head(dtype), 64
    bits, ratio = torch.full((batch, 4), MASK), torch.ones(batch)
    latent, null_latent = latents(batch, dtype), 1e3 * latents(batch, dtype, 1)
    guided = head.guided_logits(bits, latent, null_latent, ratio, torch.ones(batch))
    same = head.guided_logits(bits, latent, latents(batch, dtype, 2), ratio, torch.ones(batch))
    assert torch.equal(guided, same)
    torch.testing.assert_close(guided, head(bits, latent, ratio))
    stronger = head.guided_logits(bits, latent, null_latent, ratio, torch.full((batch,), 2.0))
    expected = 2 * head(bits, latent, ratio) - head(bits, null_latent, ratio)
    torch.testing.assert_close(stronger, expected)


@torch.no_grad()
def test_without_temperature_noise_has_no_say() -> None:
    """At temperature 0 a token is a function of its latents alone."""
    head, rows = tiny_head(), Rows()
    rows.temperature = torch.zeros(rows.size)
    before = rows.sample(head)
    rows.uniforms = rows.uniforms.flip(0)
    assert torch.equal(before, rows.sample(head))


@torch.no_grad()
def test_one_round_without_temperature_is_argmax() -> None:
    """A schedule of one round takes each bit's likelier value from the fully masked token."""
    head, latent = tiny_head(), latents(32)
    logits = head(torch.full((32, 4), MASK), latent, torch.ones(32))
    silent = torch.zeros(32)
    uniforms = token_uniforms(torch.arange(32), torch.arange(32), 1, 4)
    bits = head.sample(latent, latent, silent + 1, silent, unmasking([(4,)] * 32), uniforms)
    assert torch.equal(logits.argmax(-1), bits)


@torch.no_grad()
def test_greedy_rounds_follow_the_algorithm() -> None:
    """At temperature 0 each round keeps the most confident bits and looks again at the others."""
    head, latent = tiny_head(), latents(16)
    uniforms = torch.zeros(16, 4, 4, 3)
    one, silent = torch.ones(16), torch.zeros(16)
    drawn = head.sample(latent, latent, one, silent, unmasking([(1, 1, 1, 1)] * 16), uniforms)
    for row in range(16):
        bits = torch.full((4,), MASK)
        for left in (4, 3, 2, 1):
            ratio = torch.tensor([left / 4])
            logits = head(bits[None], latent[row : row + 1], ratio)[0]
            confidence = logits.amax(-1).masked_fill(bits != MASK, -torch.inf)
            surest = confidence.argmax()
            bits[surest] = logits[surest].argmax()
        assert torch.equal(bits, drawn[row])


@torch.no_grad()
def test_logits_depend_on_bits_latent_and_ratio() -> None:
    """Each visible bit, the latent and the mask ratio move the logits of every bit."""
    head, latent = tiny_head(), latents(1)
    bits, ratio = torch.tensor([[0, MASK, 1, MASK]]), torch.tensor([0.5])
    logits = head(bits, latent, ratio)
    assert (1, 4, 2) == tuple(logits.shape)
    others = [
        head(torch.tensor([[1, MASK, 1, MASK]]), latent, ratio),
        head(torch.tensor([[0, MASK, 1, 1]]), latent, ratio),
        head(bits, latent + 1, ratio),
        head(bits, latent, torch.tensor([0.75])),
    ]
    for other in others:
        assert (other - logits).abs().min() > 1e-6


def test_mask_ratio_features() -> None:
    """The ratio enters as sines, then cosines, of 2π times each frequency."""
    embed = MaskRatioEmbedding(8).double()
    ratio = torch.tensor([0.0, 0.25], dtype=torch.float64)
    angles = 2 * torch.pi * ratio[:, None] * embed.frequencies
    expected = embed.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
    torch.testing.assert_close(embed(ratio), expected)


def test_frequencies_are_stored_and_not_trained() -> None:
    """The random frequencies belong to the checkpoint, and the optimiser never sees them."""
    head = tiny_head()
    assert "ratio_embed.frequencies" in head.state_dict()
    assert "ratio_embed.frequencies" not in dict(head.named_parameters())


def test_loss_formula() -> None:
    """The loss is the mean cross entropy of all bits, visible ones weighing a tenth."""
    head, latent = tiny_head(), latents(6)
    bits, mask = targets(6)
    ratio = torch.linspace(0.1, 1, 6)
    seen = bits.masked_fill(mask, MASK)
    log_p = head(seen, latent, ratio).log_softmax(-1).gather(-1, bits[..., None])[..., 0]
    weight = mask * 1.0 + ~mask * 0.1
    expected = -(weight * log_p).sum() / weight.sum()
    torch.testing.assert_close(head.loss(bits, latent, mask, ratio), expected, atol=1e-7, rtol=0)


def test_loss_counts_every_bit() -> None:
    """Flipping any one target, masked or visible, changes the loss."""
    head, latent = tiny_head(), latents(2)
    bits = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    ratio = torch.tensor([0.5, 0.5])
    loss = head.loss(bits, latent, mask, ratio)
    for row, bit in product(range(2), range(4)):
        flipped = bits.clone()
        flipped[row, bit] ^= 1
        assert (head.loss(flipped, latent, mask, ratio) - loss).abs() > 1e-4


def test_loss_takes_stored_bits() -> None:
    """Bits stored as uint8 give the loss of bits held as int64."""
    head, latent, ratio = tiny_head(), latents(3), torch.ones(3)
    bits, mask = torch.tensor([[0, 1, 1, 0]] * 3), torch.ones(3, 4, dtype=torch.bool)
    expected = head.loss(bits, latent, mask, ratio)
    assert torch.equal(expected, head.loss(bits.to(torch.uint8), latent, mask, ratio))


def test_gradient_reaches_every_weight_and_the_latent() -> None:
    """The loss moves every parameter of the head, and the trunk through its latent."""
    head, latent = tiny_head(), latents(8).requires_grad_()
    bits, mask = targets(8)
    head.loss(bits, latent, mask, torch.full((8,), 0.5)).backward()
    still = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert [] == still
    assert latent.grad is not None
    assert latent.grad.abs().amax(-1).min() > 0


def test_logits_are_float32_at_least() -> None:
    """A bfloat16 head returns float32 logits, a float64 head float64."""
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        logits = tiny_head(dtype)(torch.full((2, 4), MASK), latents(2, dtype), torch.ones(2))
        assert expected == logits.dtype
