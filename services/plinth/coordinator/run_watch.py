"""Watching one run: each of its states once, also over a break, for any number of watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from plinth.coordinator import machine
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import InvalidArgument, Unavailable

_OUTAGE_S = 0.5


async def watch_run(
    records: RunRecords, feed: ChangeFeed, run_id: str, last: int | None
) -> AsyncGenerator[tuple[str, rec.RunRecord], None]:
    """(position, run): the run as it is, or with the `last` position what it became after that;
    then each change until it has ended. Outlives a Redis that is gone. NotFound."""
    if last is None:
        runs = [await records.get(run_id)]
        last = runs[0].revision
    else:
        runs = await records.after(run_id, last)
    run = runs[-1] if runs else await records.get(run_id)
    while True:
        for told in runs:
            last = told.revision
            yield str(last), told
        if machine.ended(run):
            return
        runs = await _later(records, feed, run_id, last)
        run = runs[-1] if runs else run


async def next_revision(records: RunRecords, feed: ChangeFeed, run: rec.RunRecord) -> rec.RunRecord:
    """The run when it may have changed; as it was while Redis is gone."""
    seen = feed.seen(run.run_id)
    try:
        now = await records.get(run.run_id)
        if now.revision != run.revision:
            return now
        await feed.changed(run.run_id, seen)
        return await records.get(run.run_id)
    except Unavailable:
        await asyncio.sleep(_OUTAGE_S)
        return run


async def _later(
    records: RunRecords, feed: ChangeFeed, run_id: str, revision: int
) -> list[rec.RunRecord]:
    """What became of the run, when it may have changed; nothing while Redis is gone."""
    seen = feed.seen(run_id)
    try:
        if runs := await records.after(run_id, revision):
            return runs
        await feed.changed(run_id, seen)
        return await records.after(run_id, revision)
    except Unavailable:
        await asyncio.sleep(_OUTAGE_S)
        return []


def watch_position(resume_token: str) -> int | None:
    """The revision that a watch has come to; None at its start. InvalidArgument else."""
    if not resume_token:
        return None
    if not (resume_token.isascii() and resume_token.isdigit() and len(resume_token) < 20):
        raise InvalidArgument(
            f"resume_token {resume_token[:40]!r} is none of WatchRun's: give the last response's "
            "as it was, or none to begin with the run as it is",
            field="resume_token",
        )
    return int(resume_token)
