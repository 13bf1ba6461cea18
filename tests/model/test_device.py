"""Facts of counting cores: physical ones, allowed ones, and no more than the container has."""

import os
from pathlib import Path

import pytest
import torch

from model.device import gpu_memory_bytes, has_cpu_bfloat16, num_physical_cores, use_device

MISSING = Path("/nowhere/at/all")


def cpuinfo(path: Path, processors: list[tuple[int, int, int]]) -> Path:
    """Write a /proc/cpuinfo of (processor, package, core) triples."""
    path.write_text(
        "".join(
            f"processor\t: {processor}\nmodel name\t: A Processor: Fast\nphysical id\t: {package}\n"
            f"core id\t\t: {core}\nflags\t\t: fpu vme avx512_bf16\n\n"
            for processor, package, core in processors
        )
    )
    return path


HYPERTHREADED = [(n, 0, n % 4) for n in range(8)]
TWO_SOCKETS = [(n, n // 4, n % 4) for n in range(8)]


@pytest.mark.parametrize(
    ("processors", "allowed", "expected"),
    [
        pytest.param(HYPERTHREADED, range(8), 4, id="hyper-threaded"),
        pytest.param(TWO_SOCKETS, range(8), 8, id="two sockets with the same core ids"),
        pytest.param(HYPERTHREADED, {0, 4}, 1, id="both threads of one core"),
        pytest.param(HYPERTHREADED, {0, 1, 4}, 2, id="one core and a half"),
        pytest.param(TWO_SOCKETS, {3, 7}, 2, id="one core of each socket"),
    ],
)
def test_physical_cores_are_counted(
    tmp_path: Path, processors: list[tuple[int, int, int]], allowed: set[int], expected: int
) -> None:
    """A core counts once however many threads it has, and only if this process may use it."""
    assert expected == num_physical_cores(cpuinfo(tmp_path / "c", processors), MISSING, allowed)


def test_processors_count_where_cores_are_not_listed(tmp_path: Path) -> None:
    """Without the file, and with one that names no cores (Arm), every processor is a core."""
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nBogoMIPS\t: 243.75\n\nprocessor\t: 1\nBogoMIPS\t: 243.75\n\n")
    assert 3 == num_physical_cores(MISSING, MISSING, range(3))
    assert 2 == num_physical_cores(arm, MISSING, range(2))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 4),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 4),
    ],
)
def test_a_containers_quota_is_a_limit(tmp_path: Path, quota: str, expected: int) -> None:
    """Whole cores of the quota, at least one, and never more than there are."""
    limits = tmp_path / "cpu.max"
    limits.write_text(quota)
    listed = cpuinfo(tmp_path / "cpuinfo", HYPERTHREADED)
    assert expected == num_physical_cores(listed, limits, range(8))


def test_this_machine_has_cores() -> None:
    """By default this process's own processors are counted."""
    assert 1 <= num_physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("supported", "expected"),
    [
        ((), False),
        (("_is_avx512_bf16_supported",), True),
        (("_is_amx_tile_supported",), True),
    ],
)
def test_either_instruction_set_multiplies_bfloat16(
    supported: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 or AMX: one of them is enough."""
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda name=check: name in supported, raising=False)
    assert expected == has_cpu_bfloat16()


def test_a_cpu_has_no_gpu_memory() -> None:
    """Where there is none, none is told of."""
    assert {} == gpu_memory_bytes(torch.device("cpu"))


def test_the_second_gpu_becomes_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of CUDA for the processor."""
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    use_device(torch.device("cpu"))
    use_device(torch.device("cuda:1"))
    assert [torch.device("cuda:1")] == used
