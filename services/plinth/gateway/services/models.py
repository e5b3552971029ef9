"""ModelService: what is served now."""

from __future__ import annotations

from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import models_pb2, models_pb2_grpc


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """The RPCs; see models.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.ModelService",
            lambda server: models_pb2_grpc.add_ModelServiceServicer_to_server(self, server),
        )

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> models_pb2.ListModelsResponse:
        """Served models by name."""
        return models_pb2.ListModelsResponse(
            models=[
                models_pb2.ServedModel(
                    name=model.name,
                    artifact=model.artifact,
                    weights_digest=model.weights_digest,
                    context_length=model.context_length,
                    ready_shards=model.ready_shards,
                )
                for model in await self._core.catalogue.models()
            ]
        )
