"""How a process that serves keeps its memory: without long pauses, and without what is free.

Both are for a process of its own, and not for one that others' code shares.
"""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE_BYTES = 128 << 10


def freeze_what_lives() -> None:
    """Leaves all objects that there are out of garbage collections from now on.

    A full collection looks at every object there is and holds the interpreter's lock meanwhile:
    with the modules of the gateway 50 ms, with those of a shard 175 ms, in which no stream moves.
    What lives once a process has started lives to its end. Of what is frozen, cycles that are let
    go of later are never freed. See https://docs.python.org/3.11/library/gc.html#gc.freeze.
    """
    gc.collect()
    gc.freeze()
    # The next one is due once a quarter as many objects are new as the last one left, which is now
    # none: else cycles of some 75,000 objects would wait for it.
    gc.collect()


def give_back_large_blocks() -> None:
    """Has blocks of LARGE_BYTES and more, such as bodies, given back to the system once freed.

    That is how glibc begins, but by each such block that is freed it raises the size up to 32 MiB,
    and then keeps them in its heaps, one for each thread. Another C library keeps its ways.
    See https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
