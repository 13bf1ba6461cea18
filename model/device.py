"""What this machine computes with: dtype, threads.

Read by the worker and the benchmarks when they build an engine. Source: oneDNN's bfloat16 is
emulated, and 44 to 500 times slower, on processors without AVX512-BF16 or AMX.
"""

import os
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Below this many parameters a step on the CPU is overhead, not arithmetic: bfloat16 gains nothing.
SMALL_MODEL_PARAMETERS = 20_000_000


def choose_dtype(name: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """Return the dtype called `name`; "auto" is the fastest in which this device is at home.

    Raises ValueError for a name that is none of auto, float32 and bfloat16.
    """
    if name == "auto":
        if device.type == "cpu":
            suits = has_cpu_bfloat16() and num_parameters >= SMALL_MODEL_PARAMETERS
            return torch.bfloat16 if suits else torch.float32
        return torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {' or '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def has_cpu_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 in hardware."""
    # Private names of torch, which has no public ones that every supported version shares.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def num_physical_cores(
    cpuinfo: Path = Path("/proc/cpuinfo"), quota: Path = Path("/sys/fs/cgroup/cpu.max")
) -> int:
    """Count the physical cores that this process may use, within a container's quota.

    Two threads on one core share its arithmetic units: more threads than cores slow steps down.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(allowed or 1, _listed_cores(cpuinfo) or allowed or 1)
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def _listed_cores(cpuinfo: Path) -> int:
    """Count the distinct (package, core) pairs that the kernel lists; 0 if it lists none."""
    if not cpuinfo.is_file():
        return 0
    package, cores = "", set()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "physical id":
            package = value
        elif name.strip() == "core id":
            cores.add((package, value))
    return len(cores)
