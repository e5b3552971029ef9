"""ArtifactService: what lies on the store."""

from __future__ import annotations

import asyncio
from typing import Any

from plinth.shared.rpc.server import GrpcService
from plinth.shared.store import ArtifactStore
from plinth.v1 import artifacts_pb2, artifacts_pb2_grpc


class ArtifactServicer(artifacts_pb2_grpc.ArtifactServiceServicer):
    """The RPCs; see artifacts.proto."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.ArtifactService",
            lambda server: artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(self, server),
        )

    async def ListArtifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, context: Any
    ) -> artifacts_pb2.ListArtifactsResponse:
        records = await asyncio.to_thread(self._store.list, request.kind or None)
        records.sort(key=lambda record: record.created_unix_ms, reverse=True)
        artifacts = [record.to_proto() for record in records[: min(request.limit or 100, 1000)]]
        for artifact in artifacts:
            artifact.manifest_json = ""  # GetArtifact gives each
        return artifacts_pb2.ListArtifactsResponse(artifacts=artifacts)

    async def GetArtifact(
        self, request: artifacts_pb2.GetArtifactRequest, context: Any
    ) -> artifacts_pb2.GetArtifactResponse:
        record = await asyncio.to_thread(self._store.get, request.reference)
        aliases = await asyncio.to_thread(self._store.aliases, record.name)
        mine = [alias for alias, version in aliases.items() if version == record.version]
        return artifacts_pb2.GetArtifactResponse(artifact=record.to_proto(mine))
