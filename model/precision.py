"""The precisions that an engine computes in, by name.

float32 and bfloat16 differ by rounding; fp8, opt-in, is bfloat16 with an eight-bit cache and
eight-bit products in head and decoder, and is not exact: `quality.py` measures by how much.
"""

from dataclasses import dataclass

import torch

from model.device import has_cpu_bfloat16
from model.fp8 import FP8, Fp8Linear
from model.packed_linear import LinearKind, PackedLinear


@dataclass(frozen=True)
class Precision:
    """What weights and activations, the large products and the cache are computed and kept in."""

    dtype: torch.dtype
    is_fp8: bool = False

    @property
    def name(self) -> str:
        return "fp8" if self.is_fp8 else str(self.dtype).removeprefix("torch.")

    @property
    def linear(self) -> LinearKind:
        """The kind of layer of the head's and decoder's large products."""
        return Fp8Linear if self.is_fp8 else PackedLinear

    @property
    def cache_dtype(self) -> torch.dtype:
        return FP8 if self.is_fp8 else self.dtype


FLOAT32 = Precision(torch.float32)
PRECISIONS = {
    "float32": FLOAT32,
    "bfloat16": Precision(torch.bfloat16),
    "fp8": Precision(torch.bfloat16, is_fp8=True),
}
# Below this many parameters a step on the CPU is overhead, not arithmetic: bfloat16 gains nothing.
SMALL_MODEL_PARAMETERS = 20_000_000
BFLOAT16_CAPABILITY = (8, 0)  # Ampere; older GPUs emulate it
FP8_CAPABILITY = (9, 0)  # Hopper: products of eight-bit rows with a scale each


def choose_precision(name: str, device: torch.device, num_parameters: int) -> Precision:
    """Return the precision called `name`; "auto" is the fastest exact one of this device.

    oneDNN emulates bfloat16, 44 to 500 times slower, on processors that lack AVX512-BF16 and AMX.
    Raises ValueError for a name that is not known, and for one that the device cannot compute in.
    """
    if name == "auto":
        suits = _has_cuda_bfloat16(device) if device.type == "cuda" else has_cpu_bfloat16()
        is_small = device.type == "cpu" and num_parameters < SMALL_MODEL_PARAMETERS
        return PRECISIONS["bfloat16" if suits and not is_small else "float32"]
    if name not in PRECISIONS:
        raise ValueError(f"dtype must be auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "fp8" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < FP8_CAPABILITY:
            raise ValueError(
                f"fp8 needs a GPU of compute capability {FP8_CAPABILITY} or newer, "
                f"this one has {capability}: take bfloat16"
            )
    return PRECISIONS[name]


def _has_cuda_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY
