"""A stage that does nothing but live, for tests of what carries stages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plinth.shared.errors import FailedPrecondition
from plinth.shared.load import Load
from plinth.shared.rpc.server import GrpcService
from plinth.shared.stage import StageContext, StageFront


class TrivialFront:
    """Announces the options it was built with; answers health and nothing else."""

    def __init__(self, stage: str, options: dict[str, Any]) -> None:
        self.stage = stage
        self._options = options

    def services(self) -> Sequence[GrpcService]:
        return ()

    async def start(self) -> None:
        if self._options.get("artifact", "").startswith("broken"):
            raise FailedPrecondition("this artifact can't be loaded")

    async def check(self) -> None:
        return

    def announcement(self) -> dict[str, str]:
        return {str(key): str(value) for key, value in self._options.items()}

    async def load(self) -> Load:
        """As a test has written it into the file that option `load` names; without it, none."""
        if file := self._options.get("load"):
            return Load(float(await asyncio.to_thread(Path(file).read_text)))
        return Load(0.0)

    async def drain(self, grace_s: float) -> None:
        return


def build_echo(context: StageContext, **options: Any) -> StageFront:
    return TrivialFront("echo", options)


def build_shard(context: StageContext, **options: Any) -> StageFront:
    return TrivialFront("inference", options)
