"""Memory of the process: what malloc does with what is freed."""

import ctypes
import sys

# glibc's mallopt: parameters by their numbers in malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, so that the next update finds its pages mapped; False without glibc.

    By default glibc gives every block above 32 MiB back to the kernel, which hands out zeroed pages for it again in
    each update: a tenth of a DeiT-Tiny update (docs/performance.md). GLIBC_TUNABLES would do the same, but must be set
    before the process starts.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)))
