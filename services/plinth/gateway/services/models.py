"""ModelService: what is served now."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.catalogue import ServedModel
from plinth.shared.api.paging import Pages
from plinth.shared.api.resource_names import Pattern
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import models_pb2 as pb
from plinth.v1 import models_pb2_grpc as rpc

MODEL = Pattern("models/{model}")


class ModelServicer(rpc.ModelServiceServicer):
    """The RPCs; see models.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core
        self._pages = Pages(core.token)

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.ModelService",
            lambda server: rpc.add_ModelServiceServicer_to_server(self, server),
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """One of them. NotFound names those that there are."""
        found = await self._core.catalogue.get(MODEL.id(request.name), "name")
        return pb.GetModelResponse(model=_message(found))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """Served models by name."""
        size, behind = self._pages.size(request), self._pages.position(request)
        models = await self._core.catalogue.models()  # as many as there are deployments
        begin = bisect_right([model.name for model in models], behind)
        page = models[begin : begin + size]
        answer = pb.ListModelsResponse(models=map(_message, page))
        if begin + size < len(models):
            answer.next_page_token = self._pages.token(request, page[-1].name)
        return answer


def _message(model: ServedModel) -> pb.Model:
    return pb.Model(
        name=MODEL.name(model.name),
        revision=model.artifact,
        weights_digest=model.weights_digest,
        context_length=model.context_length,
        ready_shards=model.ready_shards,
    )
