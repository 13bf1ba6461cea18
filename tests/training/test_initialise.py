"""How weights start."""

import math

import pytest
import torch
from torch import nn

from model.config import TokenizerConfig
from model.generator import Generator
from model.masked_bit_head import MaskedBitHead
from model.tokenizer import Tokenizer
from tests.model.tiny import tiny_config, tiny_tokenizer_config
from training.initialise import initialise_generator, initialise_tokenizer, modulations
from training.tokenizer_stage import bit_entropies


def test_latent_starts_without_influence() -> None:
    """With zero modulations neither the latent nor the mask ratio changes the head's logits."""
    generator = Generator(tiny_config())
    initialise_generator(generator)
    config = generator.config
    bits = torch.randint(0, 2, (1, config.bits_per_token)).expand(2, -1)
    assert isinstance(generator.head, MaskedBitHead)
    one, other = generator.head(bits, torch.randn(2, config.head_width), torch.rand(2))
    assert torch.equal(one, other)


def test_blocks_start_as_the_identity() -> None:
    """Every adaLN projection of trunk and head is zero, so every gate is shut."""
    generator = Generator(tiny_config())
    initialise_generator(generator)
    assert 2 + 2 + 1 == len(modulations(generator))
    for linear in modulations(generator):
        assert not linear.weight.any()
        assert not linear.bias.any()


def test_matrices_are_small_and_biases_zero() -> None:
    """Other matrices have a deviation of 0.02, cut at twice that or wider, and no bias."""
    generator = Generator(tiny_config())
    initialise_generator(generator)
    qkv = generator.trunk.get_submodule("blocks.0.attn.qkv")
    assert isinstance(qkv, nn.Linear)
    assert 0.018 < qkv.weight.std() < 0.022
    assert not qkv.bias.any()


def test_quantizer_starts_alive() -> None:
    """With the threshold at zero both values of bits occur; as published every bit starts as 1."""
    torch.manual_seed(0)
    config: TokenizerConfig = tiny_tokenizer_config()
    pixels = torch.rand(32, 3, config.image_size, config.image_size) * 2 - 1
    tokenizer = Tokenizer(config)
    assert 0 == bit_entropies(tokenizer.encode(pixels)).round(decimals=3).max()
    initialise_tokenizer(tokenizer)
    bias = tokenizer.quantizer.in_proj.bias
    assert [-3.8007] * config.bits_per_latent == pytest.approx(bias.tolist(), abs=5e-5)
    assert -math.atanh(0.5 / 0.5005) == pytest.approx(bias[0].item(), abs=1e-5)
    assert 0.2 < bit_entropies(tokenizer.encode(pixels)).mean()
