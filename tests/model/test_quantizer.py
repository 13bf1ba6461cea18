"""Binary FSQ, its codes and bits, and bit budgets."""

import math

import pytest
import torch
from torch import Tensor

from model.quantizer import (
    HALF_WIDTH,
    SHIFT,
    BinaryQuantizer,
    bits_to_codes,
    codes_to_bits,
    continuous_bit_budget,
    discrete_bit_budget,
)


def identity_quantizer(num_bits: int = 1) -> BinaryQuantizer:
    """Build a float64 quantizer whose input is z itself."""
    quantizer = BinaryQuantizer(num_bits, num_bits, 8).double()
    torch.nn.init.eye_(quantizer.in_proj.weight)
    torch.nn.init.zeros_(quantizer.in_proj.bias)
    return quantizer


def column(*values: float) -> Tensor:
    """Arrange values as features (1, L, 1)."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def test_shift_is_the_published_constant() -> None:
    """The shift is atanh(0.5 / 0.5005), about 3.8."""
    assert 0.5005 == pytest.approx(HALF_WIDTH)
    assert math.atanh(0.5 / 0.5005) == pytest.approx(SHIFT)
    assert 3.8 == pytest.approx(SHIFT, abs=0.01)


def test_threshold_lies_at_minus_shift() -> None:
    """A bit is 1 from z = -SHIFT upwards, not from 0; codes are -1 and +1 exactly."""
    codes = identity_quantizer()(column(-1e3, -SHIFT - 1e-3, -SHIFT + 1e-3, 0.0, 1e3))
    assert [-1.0, -1.0, 1.0, 1.0, 1.0] == codes.flatten().tolist()


def test_gradient_passes_straight_through_the_rounding() -> None:
    """The gradient is that of the bounded value: 2 · h · (1 - tanh²(z + SHIFT)), times 1."""
    z = column(-6.0, -4.0, -SHIFT, -3.0, 0.0).requires_grad_()
    identity_quantizer()(z).sum().backward()
    expected = 2 * HALF_WIDTH * (1 - torch.tanh(z.detach() + SHIFT) ** 2)
    torch.testing.assert_close(z.grad, expected)


def test_every_channel_is_one_bit() -> None:
    """Channels are quantized independently, in order."""
    z = torch.tensor([[[0.0, -9.0, 5.0]]], dtype=torch.float64)
    assert [1, 0, 1] == codes_to_bits(identity_quantizer(3)(z)).flatten().tolist()


@pytest.mark.parametrize("num_bits", [1, 10, 16])
def test_any_bit_count_has_its_shapes(num_bits: int) -> None:
    """Features (B, L, width) become codes (B, L, bits) and then cells of the decoder's width."""
    quantizer = BinaryQuantizer(num_bits, 6, 8)
    codes = quantizer(torch.zeros(2, 5, 6))
    assert (2, 5, num_bits) == tuple(codes.shape)
    assert (2, 5, 8) == tuple(quantizer.embed(codes).shape)


def test_bits_and_codes_are_inverse() -> None:
    """Bit 0 is code -1, bit 1 is code +1, both ways, and bits are uint8."""
    bits = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    codes = bits_to_codes(bits)
    assert [-1.0, 1.0, 1.0, -1.0] == codes.tolist()
    assert torch.float32 == codes.dtype
    assert torch.equal(bits, codes_to_bits(codes))
    assert torch.uint8 == codes_to_bits(codes).dtype


@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_never_decides_a_bit(is_autocast: bool) -> None:
    """With bfloat16 weights, or under autocast, projections are computed in float32."""
    torch.manual_seed(0)
    quantizer = BinaryQuantizer(16, 64, 32)
    if not is_autocast:
        quantizer.bfloat16()
    features = torch.randn(4, 9, 64).bfloat16()
    wide = BinaryQuantizer(16, 64, 32)
    wide.load_state_dict({k: v.float() for k, v in quantizer.state_dict().items()})
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        codes = quantizer(features)
        cells = quantizer.embed(codes)
    assert torch.float32 == codes.dtype == cells.dtype
    assert torch.equal(wide(features.float()), codes)
    assert torch.equal(wide.embed(codes), cells)


@pytest.mark.parametrize(
    ("size", "downsampling", "codebook_size", "expected"),
    [
        (256, 16, 2**16, 4096),
        (256, 16, 2**10, 2560),
        (512, 16, 2**10, 10240),
        (256, 16, 1000, 2560),
        (256, 8, 2, 1024),
    ],
)
def test_discrete_bit_budget(
    size: int, downsampling: int, codebook_size: int, expected: int
) -> None:
    """A discrete image costs ⌈log2 C⌉ bits for each cell."""
    assert expected == discrete_bit_budget(size, size, downsampling, codebook_size)


def test_continuous_bit_budget() -> None:
    """A continuous image costs 16 bits for each channel of each cell."""
    assert 65_536 == continuous_bit_budget(256, 256, 16, 16)
    assert 16 * 8 * 16 * 4 == continuous_bit_budget(256, 128, 16, 4)


def test_budget_refuses_a_ragged_grid() -> None:
    """Pixels that do not fill whole cells are refused with the numbers."""
    with pytest.raises(ValueError, match="downsampling 16 does not divide 256 x 250 pixels"):
        discrete_bit_budget(256, 250, 16, 2)
    with pytest.raises(ValueError, match="downsampling 16 does not divide 100 x 256 pixels"):
        continuous_bit_budget(100, 256, 16, 16)
