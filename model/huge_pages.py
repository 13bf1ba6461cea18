"""Weights in pages of 2 MiB, on the CPU: an exchange of pages in place, which changes no value.

A step reads all weights once, far more memory than a processor remembers the addresses of at 4 KiB
a page, and in a virtual machine each look-up is itself a walk through memory. The kernel gives huge
pages to those who ask. Torch asks only if an environment variable says so before it is imported,
and never for layers below 2 MiB, which lie side by side; so `packed_linear.py` asks here instead.

A host may forbid them, as one that runs Redis is told to. The kernel would still exchange pages at
once for those who ask, so the setting is read here.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

PAGE_BYTES = 2 << 20
MIN_BYTES = PAGE_BYTES // 2  # of a layer that is worth the trouble
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # of linux/mman.h; the second since Linux 6.1
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAX_REFUSALS = 4  # in a row: memory in pieces, or a container's that is full


class HugePages:
    """Asks the kernel for huge pages, by `advise(address, advice)`, as long as it gives any."""

    def __init__(self, advise: Callable[[int, int], bool], setting: Path = SETTING) -> None:
        self._advise = advise
        self._is_forbidden = _is_never(setting)
        self._num_refused = 0

    def use(self, address: int, num_bytes: int) -> int:
        """Do what `use_huge_pages` says."""
        if self._is_forbidden:
            return 0
        done, end = 0, address + num_bytes
        for page in range(address - address % PAGE_BYTES, end, PAGE_BYTES):
            self._advise(page, MADV_HUGEPAGE)
            is_whole = address <= page and page + PAGE_BYTES <= end
            done += self._collapse(page, is_whole)
        return done * PAGE_BYTES

    def _collapse(self, page: int, is_whole: bool) -> bool:
        """Exchange a page at once. Each attempt that fails costs time, so a few are enough; one at
        an edge, with memory of others in the page, may fail for reasons of its own."""
        if self._num_refused == MAX_REFUSALS:
            return False
        is_done = self._advise(page, MADV_COLLAPSE)
        if is_whole:
            self._num_refused = 0 if is_done else self._num_refused + 1
        return is_done


def _is_never(setting: Path) -> bool:
    try:
        return "[never]" in setting.read_text("ascii")
    except OSError:  # a kernel, or a container, that does not say
        return False


def use_huge_pages(address: int, num_bytes: int) -> int:
    """Lay memory in huge pages as far as the kernel can; return how many bytes of it that were.

    They include all of the first and the last page. Before Linux 6.1, and after the kernel refused
    a few pages in a row, pages are only asked for, and the kernel exchanges them when it finds
    time. Nothing happens to little memory, where the host forbids huge pages, and elsewhere.
    """
    if sys.platform != "linux" or num_bytes < MIN_BYTES:
        return 0
    return _of_this_process().use(address, num_bytes)


@cache
def _of_this_process() -> HugePages:
    madvise, size = ctypes.CDLL(None).madvise, ctypes.c_size_t(PAGE_BYTES)
    return HugePages(lambda page, advice: madvise(ctypes.c_void_p(page), size, advice) == 0)
