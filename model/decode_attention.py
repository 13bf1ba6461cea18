"""One position's attention as one Triton kernel: norms, rotations, append and softmax together.

Used by `fast_trunk.py` on a GPU, where the cache's bytes bound a step. The plain path reads all T
positions of every row, makes ten small kernels of the rest, and copies an eight-bit cache to widen
it; this one reads a row as far as it is filled, once, and widens in registers. One program does one
head of one row. Source: paper §3.3; online softmax, Milakov and Gimelshein, arXiv 1805.02867.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.layers import NORM_EPS

BLOCK_POSITIONS = 64


def decode_attention(
    qkv: Tensor,
    gains: Tensor,
    turns: Tensor,
    keys: Tensor,
    values: Tensor,
    index: Tensor,
) -> Tensor:
    """Append each row's key and value to the cache, attend, and return (rows, H·d).

    Shapes: qkv (rows, 3·H·d), contiguous, as the projection gives it; gains of the query's and the
    key's norm, (2, d); turns, complex (rows, 2, H, d/2), by which queries and keys are multiplied
    pair by pair; keys, values (rows, H, T, d), views of the cache whose last two axes are
    contiguous; index (rows,), the position to write and the last one to see.
    """
    rows, num_heads, _, head_dim = keys.shape
    out = torch.empty(rows, num_heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    _decode_attention[(rows, num_heads)](
        qkv.contiguous(),
        gains,
        torch.view_as_real(turns).contiguous(),
        keys,
        values,
        index,
        out,
        keys.stride(0),
        keys.stride(1),
        head_dim**-0.5,
        NORM_EPS,
        num_heads,
        head_dim,
        triton.next_power_of_2(head_dim),
        BLOCK_POSITIONS,
    )
    return out


@triton.jit
def _turned(
    base: Any, gain: Any, turn: Any, eps: Any, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> Any:
    """Normalise one head's vector and turn its neighbouring pairs, in float32."""
    channel = tl.arange(0, BLOCK_D)
    inside = channel < D
    partner = channel ^ 1  # the other one of the pair
    x = tl.load(base + channel, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(base + partner, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x) / D + eps)
    x *= scale * tl.load(gain + channel, mask=inside, other=0.0)
    y *= scale * tl.load(gain + partner, mask=inside, other=0.0)
    # (x0 cos - x1 sin, x1 cos + x0 sin); a pair's cosine and sine stand side by side
    even = channel % 2 == 0
    cos = tl.load(turn + channel - channel % 2, mask=inside, other=0.0)
    sin = tl.load(turn + channel - channel % 2 + 1, mask=inside, other=0.0)
    return x * cos + tl.where(even, -1.0, 1.0) * y * sin


@triton.jit
def _decode_attention(  # noqa: PLR0913, PLR0917 - a kernel takes pointers one by one
    qkv: Any,
    gains: Any,
    turns: Any,
    keys: Any,
    values: Any,
    index: Any,
    out: Any,
    row_stride: Any,
    head_stride: Any,
    scale: Any,
    eps: Any,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK_D)
    inside = channel < D
    at = tl.load(index + row)
    vector = qkv + row * 3 * H * D + head * D
    turn = turns + row * 2 * H * D + head * D
    query = _turned(vector, gains, turn, eps, D, BLOCK_D)
    key = _turned(vector + H * D, gains + D, turn + H * D, eps, D, BLOCK_D)
    value = tl.load(vector + 2 * H * D + channel, mask=inside, other=0.0)
    cached = row * row_stride + head * head_stride
    # Rounded to the cache's dtype before use, so that a position sees itself as later ones do.
    key = key.to(qkv.dtype.element_ty).to(tl.float32).to(keys.dtype.element_ty)
    value = value.to(tl.float32).to(values.dtype.element_ty)
    tl.store(keys + cached + at * D + channel, key, mask=inside)
    tl.store(values + cached + at * D + channel, value, mask=inside)

    query = query.to(qkv.dtype.element_ty).to(tl.float32) * scale
    largest = tl.sum(query * key.to(tl.float32))
    total = 1.0
    weighted = value.to(tl.float32)
    for start in range(0, at, BLOCK_T):
        position = start + tl.arange(0, BLOCK_T)
        seen = position < at
        block = cached + position[:, None] * D + channel[None, :]
        mask = seen[:, None] & inside[None, :]
        k = tl.load(keys + block, mask=mask, other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(query[None, :] * k, axis=1), float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score))
        weight = tl.exp(score - new_largest)
        fade = tl.exp(largest - new_largest)
        v = tl.load(values + block, mask=mask, other=0.0).to(tl.float32)
        weighted = weighted * fade + tl.sum(weight[:, None] * v, axis=0)
        total = total * fade + tl.sum(weight)
        largest = new_largest
    attended = (weighted / total).to(out.dtype.element_ty)
    tl.store(out + row * H * D + head * D + channel, attended, mask=inside)
