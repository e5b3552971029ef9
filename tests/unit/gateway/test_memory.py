"""Memory that is free goes back to the system."""

from __future__ import annotations

import asyncio
import gc
import threading

import psutil
import pytest

from patience import PATIENCE_S
from plinth.gateway import memory
from plinth.shared.tasks import cancel_and_wait

PIECES, PIECE_BYTES, KEPT_EVERY = 20_000, 2_000, 200


async def test_free_pieces_between_used_ones_are_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "PERIOD_S", 0.05)
    trim, trimmed = memory._malloc_trim(), threading.Event()
    assert trim is not None, "this is no glibc"

    def trimming(pad: int) -> int:
        trimmed.set()
        return trim(pad)

    monkeypatch.setattr(memory, "_malloc_trim", lambda: trimming)
    process = psutil.Process()
    gc.collect()
    # glibc keeps these pages itself: what is still in use lies among them and behind them.
    pieces = [bytearray(PIECE_BYTES) for _ in range(PIECES)]
    full = process.memory_info().rss
    giving = asyncio.create_task(memory.give_back())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(trimmed.wait)  # once while all of it is in use
            kept = pieces[::KEPT_EVERY]
            del pieces
            while process.memory_info().rss > full - PIECES * PIECE_BYTES // 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await cancel_and_wait(giving)
    assert len(kept) == PIECES // KEPT_EVERY
