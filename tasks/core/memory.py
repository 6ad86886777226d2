"""Memory between steps: what a training step frees is what the next one asks for.

glibc gives it back to the system each time; a step of a small CNN then takes 1,900 page faults and
a tenth of its time for nothing. Changes no result; where there is no glibc it does nothing.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 512 * 2**20  # bytes at the end of the heap that may stay there unused
MAPPED = 32 * 2**20  # bytes above which an allocation is mapped alone: the most that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
