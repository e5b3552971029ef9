"""What points to a collection of preferences: the runs that read it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from plinth.coordinator.pipeline import STORED_BYTES, parse
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.preferences import PreferencesSpec
from plinth.shared.errors import InvalidArgument


class CollectionUses:
    """Looks through the runs that go on."""

    def __init__(self, runs: RunRecords) -> None:
        self._runs = runs

    async def of(self, collection: str) -> Sequence[str]:
        """What reads it and has not ended, for people: "run nightly-7"."""
        found = []
        for run_id in await self._runs.active():
            if (run := await self._runs.find(run_id)) is None:
                continue  # it has ended and was deleted since
            try:
                pipeline = await asyncio.to_thread(parse, run.pipeline_yaml, most=STORED_BYTES)
            except InvalidArgument:
                continue  # it will be refused, and reads nothing
            read = {
                spec.collection
                for spec in pipeline.steps.values()
                if isinstance(spec, PreferencesSpec)
            }
            if collection in read:
                found.append(f"run {run_id}")
        return found
