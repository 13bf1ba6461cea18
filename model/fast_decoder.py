"""The image decoder as the engine runs it: packed weights, GELU inside the product.

Always at one fixed number of images a call, padded if there are fewer, so that pixels do not depend
on company; on a GPU on a stream of its own, beside the steps. The last convolution and the
conversion to uint8 stay float32. Source: paper §3.2.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.batch_limit import BatchLimit
from model.image_decoder import unfold_patches
from model.layers import VitBlock, merge_heads, split_heads
from model.packed_linear import LinearKind, PackedLinear
from model.tokenizer import Tokenizer, to_uint8


class FastVitBlock:
    """The weights of one decoder block."""

    def __init__(self, block: VitBlock, dtype: torch.dtype, linear: LinearKind) -> None:
        self._norm1, self._norm2 = _pack_norm(block.norm1, dtype), _pack_norm(block.norm2, dtype)
        self._num_heads = block.attn.num_heads
        self._qkv, self._proj, self._fc1, self._fc2 = (
            linear(layer.weight, layer.bias, dtype)
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        qkv = self._qkv(_layer_norm(x, self._norm1)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self._num_heads) for part in qkv)
        x = x + self._proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + self._fc2(self._fc1(_layer_norm(x, self._norm2), "gelu"))


class Decoding(NamedTuple):
    """Pixels on their way to the host."""

    pixels: Tensor  # (B, height, width, 3) uint8
    arrived: torch.cuda.Event | None  # None where they were computed on the host

    def images(self) -> NDArray[np.uint8]:
        """Wait for the pixels and return them. Any thread may call it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        images: NDArray[np.uint8] = self.pixels.numpy()
        return images


class FastDecoder:
    """Turns bits into uint8 pixels with the weights of a `Tokenizer`."""

    @torch.no_grad()
    def __init__(
        self,
        tokenizer: Tokenizer,
        dtype: torch.dtype,
        batch_size: int,
        linear: LinearKind = PackedLinear,
        pad: bool = True,
    ) -> None:
        """Without `pad`, fewer images than a batch are decoded as they are, not bit for bit."""
        decoder, self._dtype = tokenizer.decoder, dtype
        self._limit, self._pad = BatchLimit(batch_size), pad
        self.num_out_of_memory = 0
        device = decoder.class_token.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._config = tokenizer.config
        self._quantizer, self._smooth = tokenizer.quantizer, decoder.smooth
        self._class_token = decoder.class_token.to(dtype)
        self._position_embed = decoder.position_embed.to(dtype)
        self._norm_pre = _pack_norm(decoder.norm_pre, dtype)
        self._norm_post = _pack_norm(decoder.norm_post, dtype)
        blocks: list[VitBlock] = list(decoder.blocks)  # type: ignore[arg-type]
        self._blocks = [FastVitBlock(block, dtype, linear) for block in blocks]
        to_pixels = decoder.to_pixels
        assert to_pixels.bias is not None
        self._to_pixels = PackedLinear(to_pixels.weight.flatten(1), to_pixels.bias, dtype)

    @property
    def batch_size(self) -> int:
        """How many images are decoded at once: fewer for a while after the memory ran out."""
        return self._limit.count

    @property
    def num_changes(self) -> int:
        """How often that number has changed."""
        return self._limit.num_changes

    @torch.no_grad()
    def start(self, codes: Tensor) -> "Decoding":
        """Begin to decode (B, L, bits_per_latent) codes.

        Codes are -1 and +1 for the two values of a bit, and 0 for a bit that is not known.
        """
        if self._stream is None:
            return Decoding(self._decode(codes), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            codes.record_stream(self._stream)
            pixels = self._decode(codes)
            on_host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            on_host.copy_(pixels, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # who waits sleeps
            arrived.record()
        return Decoding(on_host, arrived)

    def _decode(self, codes: Tensor) -> Tensor:
        """(B, L, bits_per_latent) codes → (B, height, width, 3) uint8."""
        images: list[Tensor] = []
        while waiting := len(codes) - sum(map(len, images)):
            batch = codes[-waiting:][: self.batch_size]
            missing = self.batch_size - len(batch) if self._pad else 0
            padded = F.pad(batch, (0, 0, 0, 0, 0, missing))
            decoded = self._try_batch(padded)
            if decoded is None:
                self.num_out_of_memory += 1
                self._limit.halve(len(padded))
            else:
                images.append(decoded[: len(batch)])
                self._limit.grow()
        return torch.cat(images)

    def _try_batch(self, codes: Tensor) -> Tensor | None:
        """Decode a batch; None where the memory is too small for it but may do for half of it.

        A function of its own: what the failed attempt held is free once it has returned.
        """
        try:
            return self._decode_batch(codes)
        except torch.OutOfMemoryError:
            if len(codes) == 1:
                raise
            return None

    def _decode_batch(self, codes: Tensor) -> Tensor:
        cells = self._quantizer.embed(codes).to(self._dtype)
        class_token = self._class_token.expand(len(cells), 1, -1)
        x = torch.cat([class_token, cells], dim=1) + self._position_embed
        x = _layer_norm(x, self._norm_pre)
        for block in self._blocks:
            x = block(x)
        patches = self._to_pixels(_layer_norm(x[:, 1:], self._norm_post))  # (B, L, 3p²)
        side = self._config.grid_size
        grid = patches.transpose(1, 2).reshape(len(cells), -1, side, side)
        pixels = unfold_patches(grid, self._config.patch_size).to(self._smooth.weight.dtype)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return to_uint8(self._smooth(pixels))


Norm = tuple[Tensor, Tensor, float]


def _pack_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Norm:
    return norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps


def _layer_norm(x: Tensor, norm: Norm) -> Tensor:
    weight, bias, eps = norm
    return F.layer_norm(x, weight.shape, weight, bias, eps)
