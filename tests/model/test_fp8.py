"""Facts of eight-bit linear layers: close, never NaN, and on the CPU an emulation of the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.fp8 import FP8, Fp8Linear, saturate
from tests.model.tiny import fill_with_noise


def random_linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    """Build a layer of unit gain."""
    linear = nn.Linear(num_inputs, num_outputs)
    fill_with_noise(linear)
    return linear


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("num_inputs", [7, 48, 64])
@torch.no_grad()
def test_products_are_close(num_inputs: int, activation: str) -> None:
    """With three bits of mantissa in both factors the error is about 2 % of the outputs' size,
    also for widths that have to be padded."""
    linear = random_linear(num_inputs, 32)
    x = torch.randn(2, 50, num_inputs, generator=torch.Generator().manual_seed(1))
    expected = F.gelu(linear(x)) if activation == "gelu" else linear(x)
    out = Fp8Linear(linear.weight, linear.bias, torch.bfloat16)(x.bfloat16(), activation)
    assert (torch.bfloat16, expected.shape) == (out.dtype, out.shape)
    error = (out.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0.005 < error < 0.06


@torch.no_grad()
def test_each_row_and_each_channel_has_its_own_scale() -> None:
    """Scaling a row, or a channel, by a power of two scales its results and no others."""
    linear, zeros = random_linear(32, 16), torch.zeros(16)
    by_channel = 2.0 ** torch.arange(16)
    by_row = torch.tensor([[1.0], [2.0**20], [2.0**-20]])
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    out = Fp8Linear(linear.weight, zeros, torch.float32)(x)
    scaled = Fp8Linear(linear.weight * by_channel[:, None], zeros, torch.float32)(x * by_row)
    assert torch.equal(out * by_channel * by_row, scaled)


@torch.no_grad()
def test_rows_of_zeros_give_the_bias() -> None:
    """A row whose largest value is zero has no scale to divide by, and no NaN comes of it."""
    linear = random_linear(32, 16)
    out = Fp8Linear(linear.weight, linear.bias, torch.float32)(torch.zeros(1, 32))
    assert torch.equal(linear.bias[None], out)


def test_conversion_saturates() -> None:
    """Values beyond 448 become 448, in vectors and in what is left of them; other dtypes keep
    them."""
    x = torch.tensor([-1e5, -448.0, 0.5, 449.0, 1e5])
    assert [-448, -448, 0.5, 448, 448] == saturate(x, FP8).float().tolist()
    assert torch.equal(torch.full((67,), 448.0), saturate(torch.full((67,), 1e9), FP8).float())
    assert torch.equal(x.bfloat16(), saturate(x, torch.bfloat16))
