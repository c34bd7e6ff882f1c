"""Keep freed memory mapped, so that each update does not fault its activations in again."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to hand large blocks out of its heap and to give none back.

    By default each large block is a mapping of its own, returned when freed and faulted in anew in the
    next update. The price is that the process stays at its peak size. Against that, oneDNN keeps fewer
    kernels: it compiles one for each size of a product and by default holds on to 1024 of them. 512 hold
    those that modules/products.py makes, and those of attention in some updates. Returns False where there is
    no glibc, and its settings were not changed. To be called before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))
    return all([mallopt(option, value) == 1 for option, value in settings])
