"""What this machine's processor can do: bfloat16, and how many threads are worth having.

Read by the worker and the benchmarks when they build an engine.
"""

import os
from pathlib import Path

import torch


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
