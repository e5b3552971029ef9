"""Keeps Python's garbage collections short in a process that serves.

A full collection looks at every object there is, and holds the interpreter's lock meanwhile: with
the modules of a gateway loaded 50 ms, with torch several times that, in which no stream moves. What
lives once the process is ready lives to its end; without it a collection takes as long as what the
requests made. See https://docs.python.org/3.11/library/gc.html#gc.freeze.
"""

from __future__ import annotations

import gc


def freeze_what_lives() -> None:
    """Leaves all objects that there are out of collections from now on. For a process of its own,
    once it has started: of what is frozen, cycles that are let go of later are never freed."""
    gc.collect()
    gc.freeze()
