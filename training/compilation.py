"""Transformer blocks compiled by torch.compile: `training.compile`.

Block by block instead of the whole loss: blocks are equal, so that a single one is compiled for all
of them, and what stands between them may go on reading numbers and drawing masks in Python. A
module is compiled in place and keeps the names of its weights, in checkpoints too.
"""

from torch import nn

from training.blocks import transformer_blocks
from training.errors import TrainingError


def compile_blocks(model: nn.Module, device_type: str) -> None:
    """Compile every transformer block inside `model`, when it is first called.

    Raises what `check_compiler` raises.
    """
    check_compiler(device_type)
    for block in transformer_blocks(model):
        # Dropout draws what it would draw without being compiled.
        block.compile(options={"fallback_random": True})


def check_compiler(device_type: str) -> None:
    """Raise TrainingError unless there is what torch.compile needs on such a device."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton  # noqa: PLC0415  slow to find out

        if not has_triton():
            raise TrainingError(
                "training.compile needs Triton and a GPU of compute capability 7.0 or newer: "
                "pip install triton, or set training.compile to false"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415  slow to import
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise TrainingError(
            "training.compile needs a C++ compiler on a CPU, and found none: install g++ (on "
            "Debian: apt install g++), or set training.compile to false"
        ) from error
