"""Building blocks against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from model.layers import (
    BitEmbedding,
    Mlp,
    SelfAttention,
    SwiGLU,
    VitBlock,
    causal_attention,
    merge_heads,
    modulate,
    rms_norm,
    split_heads,
    swiglu_width,
)
from tests.model.tiny import fill_with_noise


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a float64 tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("width", "hidden"), [(768, 2048), (1280, 3413), (2048, 5461), (32, 85)])
def test_swiglu_width_is_two_thirds_of_four(width: int, hidden: int) -> None:
    """The hidden width is ⌊2/3 · 4 · width⌋, rounded down."""
    assert hidden == swiglu_width(width)


def test_swiglu_formula() -> None:
    """SwiGLU is w3(SiLU(a) · b), with a the first half of w12."""
    mlp = SwiGLU(6).double()
    x = noise(3, 6)
    a, b = (x @ mlp.w12.weight.T + mlp.w12.bias).split(16, dim=-1)
    expected = (a * torch.sigmoid(a) * b) @ mlp.w3.weight.T + mlp.w3.bias
    torch.testing.assert_close(mlp(x), expected)


def test_rms_norm_formula() -> None:
    """The norm divides by the root mean square, with 1e-6 inside the root, and applies a gain."""
    norm = rms_norm(8).double()
    fill_with_noise(norm)
    x = 1e-3 * noise(5, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_modulate_formula() -> None:
    """A scale of 0 leaves the input as it is; the shift is added afterwards."""
    x = torch.tensor([2.0])
    assert 2.0 == modulate(x, torch.zeros(1), torch.zeros(1)).item()
    assert 2.0 * 4 + 5 == modulate(x, torch.tensor([5.0]), torch.tensor([3.0])).item()


def test_heads_are_consecutive_channels() -> None:
    """Head h owns channels h·d to (h+1)·d, and merging undoes splitting."""
    x = noise(2, 5, 12)
    heads = split_heads(x, 3)
    assert (2, 3, 5, 4) == tuple(heads.shape)
    assert torch.equal(x[:, :, 4:8], heads[:, 1])
    assert torch.equal(x, merge_heads(heads))


def test_causal_attention_formula() -> None:
    """Each position averages the values up to itself by softmax of q·k / √d."""
    q, k, v = (noise(2, 3, 5, 4, seed=seed) for seed in range(3))
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(causal_attention(q, k, v), scores.softmax(-1) @ v)


def test_mlp_uses_the_exact_gelu() -> None:
    """The decoder's feed-forward has the GELU of the error function, not its tanh approximation."""
    mlp = Mlp(4, 6).double()
    x = 2 * noise(7, 4)
    hidden = mlp.fc1(x)
    expected = mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(mlp(x), expected)
    assert not torch.allclose(mlp(x), mlp.fc2(F.gelu(hidden, approximate="tanh")), atol=1e-6)


def test_self_attention_sees_everything() -> None:
    """In a vision transformer every position depends on every other, and order alone on nothing."""
    attention = SelfAttention(8, 2).double()
    x = noise(1, 4, 8)
    moved = x.clone()
    moved[:, 3] += 1
    assert (attention(moved) - attention(x)).abs().amax(-1).min() > 1e-4
    permuted = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(attention(x[:, permuted]), attention(x)[:, permuted])


def test_vit_block_is_residual_and_pre_norm() -> None:
    """A block adds attention and feed-forward of normalised input; LayerNorm epsilon is 1e-5."""
    block = VitBlock(8, 2, 16).double()
    fill_with_noise(block)
    x = noise(2, 4, 8)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    assert (1e-5, 1e-5) == (block.norm1.eps, block.norm2.eps)


def test_bit_embedding_is_bit_major() -> None:
    """The k embeddings stand one after the other, each from the row of its bit, 2 for masked."""
    embed = BitEmbedding(3, 6)
    bits = torch.tensor([[0, 2, 1]])
    expected = torch.cat([embed.weight[0], embed.weight[2], embed.weight[1]])
    assert torch.equal(expected, embed(bits)[0])


@pytest.mark.parametrize(("bits", "width", "out"), [(4, 32, 32), (10, 2048, 2050), (64, 32, 64)])
def test_bit_embedding_rounds_up(bits: int, width: int, out: int) -> None:
    """Every bit owns ⌈width / k⌉ channels."""
    assert out == BitEmbedding(bits, width).out_features
