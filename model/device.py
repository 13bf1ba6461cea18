"""What this machine's processors can do and have: bfloat16, threads worth having, GPU memory.

Read by the worker and the benchmarks when they build an engine.
"""

import os
from collections.abc import Collection
from pathlib import Path

import torch


def has_cpu_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 in hardware."""
    # Private names of torch, which has no public ones that every supported version shares.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def use_device(device: torch.device) -> None:
    """Make a GPU this thread's: streams, events, captured graphs and Triton's kernels belong to
    the current one, which is the first unless somebody says otherwise."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def gpu_memory_bytes(device: torch.device) -> dict[str, int]:
    """Return a GPU's memory: what tensors hold, what this process keeps, what is free, and all of
    it; nothing for another device. Any thread may call it."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }


def num_physical_cores(
    cpuinfo: Path = Path("/proc/cpuinfo"),
    quota: Path = Path("/sys/fs/cgroup/cpu.max"),
    allowed: Collection[int] | None = None,
) -> int:
    """Count the physical cores that this process may use, within a container's quota.

    Two threads on one core share its arithmetic units: more threads than cores slow steps down.
    `allowed` are the numbers of the logical processors, by default those that the kernel allows.
    """
    if allowed is None:
        allowed = _allowed_processors()
    cores = len(_cores_of(allowed, cpuinfo)) or len(allowed)
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def _allowed_processors() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _cores_of(allowed: Collection[int], cpuinfo: Path) -> set[tuple[str, str]]:
    """Return the (package, core) pairs of `allowed` processors; none if the kernel lists none."""
    cores: set[tuple[str, str]] = set()
    if not cpuinfo.is_file():
        return cores
    for processor in cpuinfo.read_text().split("\n\n"):
        lines = (line.partition(":") for line in processor.splitlines())
        values = {name.strip(): value.strip() for name, _, value in lines}
        if "core id" in values and int(values["processor"]) in allowed:
            cores.add((values.get("physical id", ""), values["core id"]))
    return cores
