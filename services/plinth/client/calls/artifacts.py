"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import artifacts_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_LIST_ARTIFACTS = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "ListArtifacts")
_GET_ARTIFACT = Method.of(artifacts_pb2.DESCRIPTOR, "ArtifactService", "GetArtifact")


class ArtifactService:
    """Artifacts: immutable, versioned folders on the store."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def list_artifacts(
        self,
        kind: str = "",
        *,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.ListArtifactsResponse:
        """Artifacts on the store.

        kind: Empty: all kinds.
        """
        response: artifacts_pb2.ListArtifactsResponse = self._calls.unary(
            _LIST_ARTIFACTS,
            request(artifacts_pb2.ListArtifactsRequest, kind=kind, limit=limit),
            timeout,
            metadata,
        )
        return response

    def get_artifact(
        self,
        reference: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        response: artifacts_pb2.GetArtifactResponse = self._calls.unary(
            _GET_ARTIFACT,
            request(artifacts_pb2.GetArtifactRequest, reference=reference),
            timeout,
            metadata,
        )
        return response.artifact


class AsyncArtifactService:
    """Artifacts: immutable, versioned folders on the store."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def list_artifacts(
        self,
        kind: str = "",
        *,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.ListArtifactsResponse:
        """Artifacts on the store.

        kind: Empty: all kinds.
        """
        response: artifacts_pb2.ListArtifactsResponse = await self._calls.unary(
            _LIST_ARTIFACTS,
            request(artifacts_pb2.ListArtifactsRequest, kind=kind, limit=limit),
            timeout,
            metadata,
        )
        return response

    async def get_artifact(
        self,
        reference: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> artifacts_pb2.Artifact:
        response: artifacts_pb2.GetArtifactResponse = await self._calls.unary(
            _GET_ARTIFACT,
            request(artifacts_pb2.GetArtifactRequest, reference=reference),
            timeout,
            metadata,
        )
        return response.artifact
