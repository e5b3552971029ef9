"""What judgements say: the RPCs of PreferenceService that report, export, import and publish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from plinth.coordinator.preferences.access import admitted
from plinth.coordinator.preferences.checks import export_position
from plinth.coordinator.preferences.dataset import DEFAULT_FRACTION, publish_pairs
from plinth.coordinator.preferences.importing import import_lines
from plinth.coordinator.preferences.pairs import judged_pairs, read_lines
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.report import make_report, snapshot
from plinth.shared.api.enums import word
from plinth.shared.api.owners import calling_owner, owner_of
from plinth.shared.artifact_messages import artifact_message
from plinth.shared.artifact_rights import check_next_version
from plinth.shared.identity import current_principal
from plinth.shared.preference_names import REPORTS, collection_of
from plinth.shared.store import ArtifactStore
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

_CHUNK_BYTES = 1 << 20


class PreferenceResults(rpc.PreferenceServiceServicer):
    """Requests have passed `checks.VALIDATORS`."""

    def __init__(self, redis: Redis, store: ArtifactStore) -> None:
        self._redis = redis
        self._store = store

    def _records(self, collection: str) -> PreferenceRecords:
        return PreferenceRecords(self._redis, collection)

    async def GetPreferenceReport(
        self, request: pb.GetPreferenceReportRequest, context: Any
    ) -> pb.GetPreferenceReportResponse:
        records = self._records(REPORTS.id(request.name))
        seen = await snapshot(records)
        total = (await records.counts()).total
        report = await asyncio.to_thread(make_report, seen, total)
        return pb.GetPreferenceReportResponse(report=report)

    async def ExportPairs(
        self, request: pb.ExportPairsRequest, context: Any
    ) -> AsyncIterator[pb.ExportPairsResponse]:
        shape = word(pb.PairShape, request.shape) or "trl"
        up_to, done = export_position(request)
        seen = await snapshot(self._records(collection_of(request.parent)), up_to)
        # The same judgements give the same pairs in the same order.
        pairs = await asyncio.to_thread(lambda: list(judged_pairs(seen, request.selection)))
        chunk = bytearray()
        for number, pair in enumerate(pairs[done:], done + 1):
            chunk += pair.line(shape).encode() + b"\n"
            if len(chunk) >= _CHUNK_BYTES or number == len(pairs):
                token = f"{seen.revision}-{number}"
                yield pb.ExportPairsResponse(jsonl=bytes(chunk), resume_token=token)
                chunk.clear()

    async def ImportPairs(
        self, request: pb.ImportPairsRequest, context: Any
    ) -> pb.ImportPairsResponse:
        principal = current_principal()
        records = self._records(collection_of(request.parent))
        lines = read_lines(request, records.collection)
        if request.validate_only:
            return await import_lines(records, lines, check_only=True)
        if await admitted(records, principal, making=True):
            principal.require("admin")  # the lines may be another tenant's tasks there
        return await import_lines(records, lines, owner=owner_of(principal))

    async def PublishPairs(
        self, request: pb.PublishPairsRequest, context: Any
    ) -> pb.PublishPairsResponse:
        selection, principal = request.selection, current_principal()
        await asyncio.to_thread(check_next_version, self._store, request.artifact_id, principal)
        records = self._records(collection_of(request.parent))
        seen = await snapshot(records, selection.max_revision or None)
        fraction = (
            request.validation_fraction
            if request.HasField("validation_fraction")
            else DEFAULT_FRACTION
        )
        record, _ = await asyncio.to_thread(
            publish_pairs,
            self._store.owned_by(calling_owner()),
            request.artifact_id,
            seen,
            selection,
            at_least=request.min_pair_count,
            validation_fraction=fraction,
        )
        pairs = int(record.manifest["metrics"]["pairs"])
        return pb.PublishPairsResponse(
            artifact=artifact_message(record), pair_count=pairs, revision=seen.revision
        )
