"""Facts of huge pages: found faster, and nothing else."""

import re
import sys
from collections.abc import Container
from pathlib import Path

import pytest
import torch

from model.huge_pages import (
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    MAX_REFUSALS,
    MIN_BYTES,
    PAGE_BYTES,
    HugePages,
    use_huge_pages,
)
from model.packed_linear import PackedLinear, can_pack, where_packed

MAPPED = Path("/proc/self/smaps")


def huge_bytes(address: int) -> int:
    """Return how much of the mapping around `address` lies in huge pages."""
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", MAPPED.read_text("utf-8"))[1:]:
        first, last = (int(end, 16) for end in mapping.split()[0].split("-"))
        if first <= address < last:
            found = re.search(r"AnonHugePages: +(\d+) kB", mapping)
            return int(found[1]) * 1024 if found else 0
    raise AssertionError(f"nothing is mapped at {address:#x}")


class Kernel:
    """Notes what it is asked, and gives no page of those that it `refuses`."""

    def __init__(self, refuses: Container[int] = ()) -> None:
        self.refuses = refuses
        self.asked: dict[int, list[int]] = {MADV_HUGEPAGE: [], MADV_COLLAPSE: []}

    def __call__(self, address: int, advice: int) -> bool:
        page = address // PAGE_BYTES
        self.asked[advice].append(page)
        return advice == MADV_HUGEPAGE or page not in self.refuses


def test_values_stay_and_pages_are_huge() -> None:
    """As many bytes as the function says are in huge pages, with what was in them before."""
    values = torch.arange(4 * PAGE_BYTES // 4, dtype=torch.int32)
    expected = values.clone()
    done = use_huge_pages(values.data_ptr(), values.nbytes)
    assert torch.equal(expected, values)
    if not done:
        pytest.skip("this system has no huge pages to give: Linux 6.1 or newer has")
    assert 0 == done % PAGE_BYTES
    assert 3 * PAGE_BYTES <= huge_bytes(values.data_ptr() + 2 * PAGE_BYTES)


def test_large_weights_are_laid_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packed layer asks for its own weight, all of it."""
    if not can_pack(torch.zeros(1)):
        pytest.skip("this torch was built without oneDNN")
    asked: list[tuple[int, int]] = []

    def note(address: int, num_bytes: int) -> int:
        asked.append((address, num_bytes))
        return 0

    monkeypatch.setattr("model.packed_linear.use_huge_pages", note)
    layer = PackedLinear(torch.ones(1024, 1024), torch.zeros(1024), torch.float32)
    assert [where_packed(layer.weight)] == asked
    assert 1024 * 1024 * 4 <= asked[0][1]


@pytest.mark.parametrize(("setting", "is_allowed"), [
    ("always [madvise] never\n", True), ("[always] madvise never\n", True),
    ("always madvise [never]\n", False), (None, True),
])  # fmt: skip
def test_a_host_may_forbid_it(setting: str | None, is_allowed: bool, tmp_path: Path) -> None:
    """Then nothing is asked; a kernel that does not say is asked."""
    path, kernel = tmp_path / "enabled", Kernel()
    if setting is not None:
        path.write_text(setting, "ascii")
    done = HugePages(kernel, path).use(PAGE_BYTES, 3 * PAGE_BYTES)
    assert 3 * PAGE_BYTES * is_allowed == done
    assert [[1, 2, 3] if is_allowed else []] * 2 == list(kernel.asked.values())


def test_after_a_few_refusals_it_waits_for_the_kernel(tmp_path: Path) -> None:
    """Of whole pages and in a row, for this layer and those that follow: one page that is given
    begins the count anew, and the first and the last of a layer are not in it."""
    kernel = Kernel(refuses={0, 1, 3, 4, 5, *range(20, 100)})
    pages = HugePages(kernel, tmp_path / "enabled")
    assert PAGE_BYTES == pages.use(1, 4 * PAGE_BYTES)  # 0 and 4 are edges
    assert 14 * PAGE_BYTES == pages.use(4 * PAGE_BYTES, 96 * PAGE_BYTES)
    assert 0 == pages.use(200 * PAGE_BYTES, PAGE_BYTES)
    assert [0, 1, 2, 3, 4, *range(4, 20 + MAX_REFUSALS)] == kernel.asked[MADV_COLLAPSE]
    assert [0, 1, 2, 3, 4, *range(4, 100), 200] == kernel.asked[MADV_HUGEPAGE]


@pytest.mark.parametrize(("platform", "num_bytes"), [("darwin", PAGE_BYTES), ("linux", 4096)])
def test_elsewhere_nothing_happens(
    platform: str, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on other systems nor to what is too small: no address is even looked at."""
    monkeypatch.setattr(sys, "platform", platform)
    assert num_bytes < MIN_BYTES or platform != "linux"
    assert 0 == use_huge_pages(0, num_bytes)
