"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import models_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_GET_MODEL = Method.of(models_pb2.DESCRIPTOR, "ModelService", "GetModel")
_LIST_MODELS = Method.of(models_pb2.DESCRIPTOR, "ModelService", "ListModels")


class ModelService:
    """Models that generation can be asked of now. What is to be served is DeploymentService's."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def get_model(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> models_pb2.Model:
        """One served model. NOT_FOUND: none of that name is served.

        name: Resource name, "models/chat".
        """
        response: models_pb2.GetModelResponse = self._calls.unary(
            _GET_MODEL, request(models_pb2.GetModelRequest, name=name), timeout, metadata
        )
        return response.model

    def list_models(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[models_pb2.Model, models_pb2.ListModelsResponse]:
        """Served models, by name.

        page_size: Most models to return; 0: 50. More than 1,000 are never returned at once.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_MODELS, asked, timeout, metadata),
            request(models_pb2.ListModelsRequest, page_size=page_size),
            "models",
        )


class AsyncModelService:
    """Models that generation can be asked of now. What is to be served is DeploymentService's."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def get_model(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> models_pb2.Model:
        """One served model. NOT_FOUND: none of that name is served.

        name: Resource name, "models/chat".
        """
        response: models_pb2.GetModelResponse = await self._calls.unary(
            _GET_MODEL, request(models_pb2.GetModelRequest, name=name), timeout, metadata
        )
        return response.model

    def list_models(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[models_pb2.Model, models_pb2.ListModelsResponse]:
        """Served models, by name.

        page_size: Most models to return; 0: 50. More than 1,000 are never returned at once.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_MODELS, asked, timeout, metadata),
            request(models_pb2.ListModelsRequest, page_size=page_size),
            "models",
        )
