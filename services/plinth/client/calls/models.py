"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import models_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_LIST_MODELS = Method.of(models_pb2.DESCRIPTOR, "ModelService", "ListModels")


class ModelService:
    """Models that are served."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def list_models(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> models_pb2.ListModelsResponse:
        """Models that are served now. Idempotent."""
        response: models_pb2.ListModelsResponse = self._calls.unary(
            _LIST_MODELS, request(models_pb2.ListModelsRequest), timeout, metadata
        )
        return response


class AsyncModelService:
    """Models that are served."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def list_models(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> models_pb2.ListModelsResponse:
        """Models that are served now. Idempotent."""
        response: models_pb2.ListModelsResponse = await self._calls.unary(
            _LIST_MODELS, request(models_pb2.ListModelsRequest), timeout, metadata
        )
        return response
