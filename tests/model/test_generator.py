"""Trunk and head as one module."""

import torch

from model.generator import Generator
from model.masked_bit_head import MaskedBitHead
from model.sampling import random_order
from model.transformer import Transformer
from tests.model.tiny import NUM_CLASSES, tiny_config, tiny_generator

CONFIG = tiny_config()
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def training_batch(batch: int = 6) -> Batch:
    """Return bits, classes (one of them dropped), orders, a mask and its ratios."""
    rng = torch.Generator().manual_seed(0)
    shape = (batch, CONFIG.num_tokens, CONFIG.bits_per_token)
    bits = torch.randint(0, 2, shape, generator=rng)
    class_ids = torch.arange(batch) % (NUM_CLASSES + 1)
    order = torch.stack([random_order(seed, CONFIG.num_tokens) for seed in range(batch)])
    ratio = torch.rand(shape[:2], generator=rng)
    mask = torch.rand(shape, generator=rng) < ratio[..., None]
    return bits, class_ids, order, mask, ratio


def test_parts() -> None:
    """A generator is a trunk and a head of its configuration, under those names."""
    generator = tiny_generator()
    assert isinstance(generator.trunk, Transformer)
    assert isinstance(generator.head, MaskedBitHead)
    assert {"trunk", "head"} == {name.partition(".")[0] for name in generator.state_dict()}


def test_loss_is_the_heads_loss_on_the_trunks_latents() -> None:
    """Each token's bits are judged by the latent that precedes them."""
    generator = tiny_generator()
    bits, class_ids, order, mask, ratio = training_batch()
    latents = generator.trunk(bits, class_ids, order)
    expected = generator.head.loss(
        bits.reshape(-1, 4), latents.reshape(-1, 32), mask.reshape(-1, 4), ratio.reshape(-1)
    )
    assert torch.equal(expected, generator.loss(bits, class_ids, order, mask, ratio))


def test_gradient_reaches_every_parameter() -> None:
    """One backward pass moves every parameter of trunk and head."""
    generator = tiny_generator().train()
    generator.loss(*training_batch()).backward()
    still = [n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert [] == still


def test_a_new_generator_learns() -> None:
    """From its own initialisation, a few steps of Adam halve the loss on one batch."""
    torch.manual_seed(0)
    generator, batch = Generator(CONFIG), training_batch()
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = generator.loss(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6  # about log 2: nothing is known yet
    assert losses[-1] < losses[0] / 2
