"""What points to an artifact, beside aliases and other artifacts: served models, runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from plinth.coordinator.pipeline import parse
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.manifest import Reference
from plinth.shared.records import DeploymentRecords
from plinth.shared.store import ArtifactRecord, ArtifactStore

_DRAFT = "draft:"


class ArtifactUses:
    """Looks through what is wanted and what goes on."""

    def __init__(
        self, store: ArtifactStore, deployments: DeploymentRecords, runs: RunRecords
    ) -> None:
        self._store, self._deployments, self._runs = store, deployments, runs

    async def of(self, record: ArtifactRecord) -> Sequence[str]:
        """What points to it, for people: "deployment chat", "run nightly-7"."""
        found = await asyncio.to_thread(self._served, record)
        for run_id in await self._runs.active():
            run, _ = await self._runs.load(run_id)
            if await asyncio.to_thread(self._needs, run, record):
                found.append(f"run {run_id}")
        return found

    def _served(self, record: ArtifactRecord) -> list[str]:
        return [
            f"deployment {one.name}"
            for one in self._deployments.list()
            if any(self._is(reference, record) for reference in _named(one))
        ]

    def _needs(self, run: rec.RunRecord, record: ArtifactRecord) -> bool:
        references = {step.output for step in run.steps if step.output}
        try:
            for spec in parse(run.pipeline_yaml).steps.values():
                references |= {one for one in spec.inputs().values() if not one.startswith("$")}
        except InvalidArgument:
            pass  # it will be refused, and needs nothing
        return any(self._is(reference, record) for reference in references)

    def _is(self, said: str, record: ArtifactRecord) -> bool:
        try:
            reference = Reference.parse(said)
            if reference.name != record.name:
                return False
            if reference.version is not None:
                return reference.version == record.version
            return self._store.get(said).version == record.version
        except (InvalidArgument, NotFound):
            return False


def _named(wanted: internal.DeploymentRecord) -> Iterator[str]:
    yield wanted.artifact
    if wanted.stable:
        yield wanted.stable
    if wanted.speculation.startswith(_DRAFT):
        yield wanted.speculation.removeprefix(_DRAFT)
