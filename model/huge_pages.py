"""Weights in pages of 2 MiB, on the CPU: an exchange of pages in place, which changes no value.

A step reads all weights once, far more memory than a processor remembers the addresses of at 4 KiB
a page, and in a virtual machine each look-up is itself a walk through memory. The kernel gives huge
pages to those who ask. Torch asks only if an environment variable says so before it is imported,
and never for layers below 2 MiB, which lie side by side; so `packed_linear.py` asks here instead.
"""

import ctypes
import sys

PAGE_BYTES = 2 << 20
MIN_BYTES = PAGE_BYTES // 2  # of a layer that is worth the trouble
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # of linux/mman.h; the second since Linux 6.1


def use_huge_pages(address: int, num_bytes: int) -> int:
    """Lay memory in huge pages as far as the kernel can; return how many bytes of it that were.

    They include all of the first and the last page. Before Linux 6.1 pages are asked for, and the
    kernel exchanges them when it finds time. Nothing happens to little memory, and elsewhere.
    """
    if sys.platform != "linux" or num_bytes < MIN_BYTES:
        return 0
    advise = ctypes.CDLL(None).madvise
    size, done = ctypes.c_size_t(PAGE_BYTES), 0
    for page in range(address - address % PAGE_BYTES, address + num_bytes, PAGE_BYTES):
        advise(ctypes.c_void_p(page), size, MADV_HUGEPAGE)
        done += advise(ctypes.c_void_p(page), size, MADV_COLLAPSE) == 0
    return done * PAGE_BYTES
