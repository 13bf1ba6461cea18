"""Linear layers in eight-bit floating point: faster on Hopper GPUs, and not exact.

Opt-in, for the head's and the decoder's feed-forward products, where most of the arithmetic is.
Weights are scaled by output channel, inputs by row, both to the range of e4m3; products accumulate
in float32. `quality.py` measures what it costs. On the CPU the same rounding is emulated, slowly,
so that the figures can be had without a GPU.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


class Fp8Linear:
    """Stands in for `PackedLinear`, with the same call."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._num_inputs = weight.shape[1]
        # The GPU's kernel wants multiples of 16; padding with zeros adds exactly nothing.
        padded = F.pad(weight.detach(), (0, -self._num_inputs % 16))
        self.weight, self._weight_scale = _quantize(padded)  # (out, in), (out, 1)
        self.bias, self._dtype = bias.detach().to(dtype), dtype

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """(…, in) → (…, out); `activation` is "none" or "gelu" (exact)."""
        rows = F.pad(x, (0, -self._num_inputs % 16)).flatten(0, -2)
        values, scale = _quantize(rows)
        if x.device.type == "cuda":
            out = torch._scaled_mm(  # noqa: SLF001 - torch's only product of fp8 matrices
                values,
                self.weight.t(),
                scale_a=scale,
                scale_b=self._weight_scale.t(),
                bias=self.bias,
                out_dtype=self._dtype,
            )
        else:
            product = (values.float() * scale) @ (self.weight.float() * self._weight_scale).t()
            out = product.to(self._dtype) + self.bias
        out = out.unflatten(0, x.shape[:-1])
        return F.gelu(out) if activation == "gelu" else out


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert `x`; values beyond the range of fp8 become its ends, not NaN as in some of torch."""
    return x.clamp(-_LARGEST, _LARGEST).to(FP8) if dtype == FP8 else x.to(dtype)


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) → fp8 values (N, K) and the float32 scales (N, 1) to multiply them by."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LARGEST
    return (wide / scale).to(FP8), scale
