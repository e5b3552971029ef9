"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import operations_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_GET_STATUS = Method.of(operations_pb2.DESCRIPTOR, "OperationsService", "GetStatus")


class OperationsService:
    """For operators."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def get_status(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.GetStatusResponse:
        """What an operator wants to know of all stages, as Redis has it now. Needs the scope
        "deployments"."""
        response: operations_pb2.GetStatusResponse = self._calls.unary(
            _GET_STATUS, request(operations_pb2.GetStatusRequest), timeout, metadata
        )
        return response


class AsyncOperationsService:
    """For operators."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def get_status(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> operations_pb2.GetStatusResponse:
        """What an operator wants to know of all stages, as Redis has it now. Needs the scope
        "deployments"."""
        response: operations_pb2.GetStatusResponse = await self._calls.unary(
            _GET_STATUS, request(operations_pb2.GetStatusRequest), timeout, metadata
        )
        return response
