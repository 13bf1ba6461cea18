"""What a run runs on, in words: for its report, where figures of speed mean little without it."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from training.memory_estimate import available_bytes, gigabytes

CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(device: torch.device, num_processes: int) -> Mapping[str, str]:
    """Return the processor, the GPU if that is what computes, and the versions of what runs."""
    described = {
        "processor": f"{_processor()}, {os.cpu_count()} cores, "
        f"{gigabytes(available_bytes(torch.device('cpu')))}"
    }
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), gigabytes(available_bytes(device))
        described["GPU"] = f"{name}, {memory}"
    described["device"] = (
        f"{device}, {num_processes} processes" if num_processes > 1 else f"{device}"
    )
    if device.type == "cpu":
        described["threads"] = f"{torch.get_num_threads()}"
    described["software"] = (
        f"bar-serve {_own_version()}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    return described


def _processor() -> str:
    """Return the processor's name, which Linux keeps in a file and other systems tell Python."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _own_version() -> str:
    try:
        return version("bar-serve")
    except PackageNotFoundError:
        return "from a folder"
