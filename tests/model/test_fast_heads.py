"""Facts of the heads as the engine runs them: the tokens of the plain ones, from one product."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.bit_head import BitHead
from model.config import HeadKind
from model.engine import Engine
from model.fast_head import FastHead
from model.fast_heads import FastLayerHead, prepare_head
from model.generate import generate
from model.heads import KINDS, Head
from model.precision import PRECISIONS, Precision
from model.quality import measure_quality
from model.sampling import token_uniforms, unmasking
from tests.model.pretend_graphs import PretendGraphs
from tests.model.tiny import (
    fill_with_noise,
    request,
    tiny_config,
    tiny_generator,
    tiny_tokenizer,
)

ONE_LAYER: list[HeadKind] = ["linear", "bit"]
GUIDANCE = torch.tensor([1.0, 1.5, 4.0, 9.6, 30.0])
TEMPERATURE = torch.tensor([1.0, 0.0, 2.5, 0.3, 1.0])


def tiny_head(kind: HeadKind, patch_size: int = 1, dtype: torch.dtype = torch.float64) -> Head:
    """Build a head with random weights."""
    head = KINDS[kind](tiny_config(patch_size, head=kind))
    fill_with_noise(head)
    return head.to(dtype).eval()


def random_latents(dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw latents of five rows with and without class, (2, 5, W)."""
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def slow_and_fast(head: Head, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw five tokens with the plain head, at guidance 1 where there is none, and the fast one."""
    (cond, null), num_bits = random_latents(), head.bits_per_token
    seeds = torch.arange(5) + 7
    uniforms = token_uniforms(seeds, torch.arange(5), 1, num_bits)
    scale = torch.ones(5) if guidance is None else guidance
    schedule = unmasking([(num_bits,)] * 5)
    slow = head.sample(cond, null, scale, TEMPERATURE, schedule, uniforms)
    latents = torch.stack([cond, null])[: 1 if guidance is None else 2]
    num_masked = torch.tensor([[num_bits, 0]] * 5)
    fast = prepare_head(head, torch.float64)
    return slow, fast.sample(latents, guidance, TEMPERATURE[:, None], num_masked, uniforms)


@pytest.mark.parametrize(("kind", "patch_size"), [("linear", 1), ("bit", 1), ("bit", 4)])
@torch.no_grad()
def test_tokens_are_the_plain_heads(kind: HeadKind, patch_size: int) -> None:
    """With guidance of any strength, and without the second branch."""
    head = tiny_head(kind, patch_size)
    for guidance in (GUIDANCE, None):
        slow, fast = slow_and_fast(head, guidance)
        assert (torch.int64, (5, head.bits_per_token)) == (fast.dtype, tuple(fast.shape))
        assert torch.equal(slow, fast)


@pytest.mark.parametrize("kind", ONE_LAYER)
@torch.no_grad()
def test_logits_are_the_plain_heads(kind: HeadKind) -> None:
    """Guidance before the layer is guidance behind it, to 1e-10 in float64."""
    head, latents = tiny_head(kind), random_latents()
    fast = prepare_head(head, torch.float64).first_logits(latents, GUIDANCE)
    slow = head.first_logits(latents[0], latents[1], GUIDANCE)
    assert slow.shape == fast.shape
    assert (slow - fast).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ONE_LAYER)
@torch.no_grad()
def test_bfloat16_latents_meet_float32_weights(kind: HeadKind) -> None:
    """The layer stays float32: all that is lost is the rounding of the latents."""
    head, latents = tiny_head(kind, dtype=torch.float32), random_latents(torch.bfloat16)
    rounded = prepare_head(head, torch.bfloat16).first_logits(latents, GUIDANCE)
    cond, null = latents.float().unbind()
    exact = head.first_logits(cond, null, GUIDANCE)
    assert torch.float32 == rounded.dtype
    torch.testing.assert_close(exact, rounded, atol=1e-4, rtol=1e-4)


def test_each_head_is_prepared_by_its_kind() -> None:
    """Masked bits get the head of rounds, the others the one layer."""
    assert isinstance(prepare_head(tiny_head("masked_bit"), torch.float64), FastHead)
    for kind in ONE_LAYER:
        assert isinstance(prepare_head(tiny_head(kind), torch.float64), FastLayerHead)
    assert isinstance(tiny_head("bit"), BitHead)


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_replayed_steps_have_one_round(kind: HeadKind) -> None:
    """Where steps are captured, warming up captures those that images need, of one round, and
    images are the slow generator's."""
    generator, tokenizer = tiny_generator(tiny_config(head=kind)), tiny_tokenizer()
    engine = Engine(generator, tokenizer, num_slots=2, precision=Precision(torch.float64))
    runner = engine._run_step = PretendGraphs(engine._token_step)
    engine.warm_up()
    runner.log.clear()
    images = [request(class_id=n, seed=n, unmask_schedule=(4,)) for n in range(2)]
    slots = [engine.admit(image) for image in images]
    for _ in range(generator.config.num_tokens):
        engine.step()
    assert {("replay", 1)} == {(action, plan.num_rounds) for action, plan in runner.log}
    assert np.array_equal(generate(generator, tokenizer, images), engine.decode(slots))


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_cost_of_a_precision_is_measured(kind: HeadKind) -> None:
    """float32 flips no bit; bfloat16 and fp8 lose more, and are bounded."""
    generator = tiny_generator(tiny_config(head=kind), torch.float32)
    images = [request(class_id=n, seed=n, unmask_schedule=(4,)) for n in range(4)]
    exact, half, eighth = (
        measure_quality(generator, tiny_tokenizer(dtype=torch.float32), PRECISIONS[name], images)
        for name in ("float32", "bfloat16", "fp8")
    )
    assert 0 == exact.bit_flip_rate
    assert exact.logit_error < 1e-4 < half.logit_error < eighth.logit_error < 0.5
