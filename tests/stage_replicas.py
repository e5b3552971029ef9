"""Real stages as replicas of the test's own process, and the reconciler's part."""

from __future__ import annotations

import asyncio
from typing import Any

from plinth.inference import service as inference
from plinth.shared.records import DeploymentRecords
from plinth.shared.stage import StageContext, run_stage


class Stages:
    """Replicas of this process; `serve` does what the reconciler does."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._parts: list[tuple[StageContext, Any]] = []
        self.over = asyncio.Event()

    async def add(self, stage: str, build: Any, **options: Any) -> StageContext:
        context = await StageContext.open(self._settings, stage=stage)
        self._parts.append((context, await run_stage(context, build(context, **options))))
        return context

    async def serve(self, records: DeploymentRecords) -> None:
        """A shard for each deployment that is wanted, as soon as it is."""
        served: set[str] = set()
        while not self.over.is_set():  # a replica that is started half-way would leak
            for wanted in await asyncio.to_thread(records.list):
                if wanted.name not in served:
                    served.add(wanted.name)
                    shard = {
                        "model": wanted.name,
                        "artifact": wanted.artifact,
                        "speculation": wanted.speculation,
                    }
                    await self.add("inference", inference.build, **shard)
            await asyncio.sleep(0.05)

    async def stop_first(self, stage: str) -> None:
        """The replica of a stage that was added first."""
        context, running = next(part for part in self._parts if part[1].front.stage == stage)
        self._parts.remove((context, running))
        await running.stop(5)
        await context.close()

    async def stop(self) -> None:
        for context, running in reversed(self._parts):
            await running.stop(5)
            await context.close()
