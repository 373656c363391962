"""What memory costs in time: how often Python looks for garbage, and whether freed memory stays with the process."""

import atexit
import ctypes
import functools
import gc
import sys

# mallopt's numbers for what follows, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEPT = 2**31 - 1
AT_ONCE = 64 * 2**20

# Objects made beyond those freed, after which Python looks for cycles among them; 700 by default.
COLLECT_AFTER = 50_000


@functools.cache
def collect_rarely() -> None:
    """Let Python look for garbage in cycles less often: while libraries are imported it finds none, again and again.

    Looking for it is a fifth of the time that torch, Lightning and MLflow take to be imported, and nearly all of what a
    process that has imported them takes to end: there it would go through all of them once more, to free what the
    system frees anyway.
    """
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed. Elsewhere it does nothing.

    By default each tensor of more than 32 MiB is mapped anew and its pages are zeroed by the system one by one: a
    quarter of the time of a training step of experiment=fast94 on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT), (TOP_PAD, AT_ONCE)):
                mallopt(option, value)
