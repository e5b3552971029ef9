"""What points to an artifact, beside aliases and other artifacts: served models, runs, jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from google.protobuf.message import Message

from plinth.coordinator.pipeline import STORED_BYTES, parse
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.identity import SYSTEM
from plinth.shared.manifest import Reference
from plinth.shared.records import DeploymentRecords
from plinth.shared.rpc.client import StageClients
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import jobs_pb2

_DRAFT = "draft:"
_PAGE = 200


class ArtifactUses:
    """Looks through what is wanted and what goes on."""

    def __init__(
        self,
        store: ArtifactStore,
        deployments: DeploymentRecords,
        runs: RunRecords,
        clients: StageClients,
    ) -> None:
        self._store, self._deployments = store, deployments
        self._runs, self._clients = runs, clients

    async def of(self, record: ArtifactRecord) -> Sequence[str]:
        """What points to it, for people: "deployment chat", "run nightly-7"."""
        found = await asyncio.to_thread(self._served, record)
        for run_id in await self._runs.active():
            run = await self._runs.find(run_id)
            if run is None:  # it has ended and was deleted since
                continue
            if await asyncio.to_thread(self._needs, run, record):
                found.append(f"run {run_id}")
        async for job in self._open_jobs():
            if await asyncio.to_thread(self._names, job.spec, record):
                found.append(f"job {job.name.removeprefix('jobs/')}")
        return found

    async def _open_jobs(self) -> AsyncIterator[jobs_pb2.Job]:
        """Those that wait or are at work. Unavailable without a trainer: nobody knows then."""
        # Whoever deletes need not be one who may read jobs.
        trainer = await self._clients.trainer(SYSTEM)
        for state in ("QUEUED", "RUNNING"):
            request = jobs_pb2.ListJobsRequest(filter=f"state = {state}", page_size=_PAGE)
            while True:
                page = await trainer.ListJobs(request)
                for job in page.jobs:
                    yield job
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token

    def _names(self, spec: Message, record: ArtifactRecord) -> bool:
        """Whether any text in a specification is a reference to it."""
        return any(self._is(said, record) for said in _texts(spec))

    def _served(self, record: ArtifactRecord) -> list[str]:
        return [
            f"deployment {one.name}"
            for one in self._deployments.list()
            if any(self._is(reference, record) for reference in _named(one))
        ]

    def _needs(self, run: rec.RunRecord, record: ArtifactRecord) -> bool:
        references = {step.output for step in run.steps if step.output}
        try:
            for spec in parse(run.pipeline_yaml, most=STORED_BYTES).steps.values():
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


def _texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        for one in value if field.is_repeated else (value,):
            if isinstance(one, Message):
                yield from _texts(one)
            elif isinstance(one, str):
                yield one


def _named(wanted: internal.DeploymentRecord) -> Iterator[str]:
    yield wanted.artifact
    if wanted.stable:
        yield wanted.stable
    if wanted.speculation.startswith(_DRAFT):
        yield wanted.speculation.removeprefix(_DRAFT)
