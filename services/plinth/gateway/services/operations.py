"""OperationsService: what an operator wants to know of all stages."""

from __future__ import annotations

from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import operations_pb2, operations_pb2_grpc


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """The RPCs; see operations.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.OperationsService",
            lambda server: operations_pb2_grpc.add_OperationsServiceServicer_to_server(
                self, server
            ),
        )

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Any
    ) -> operations_pb2.GetStatusResponse:
        """Replicas, models, queues, canaries. Unavailable while Redis is away."""
        return await self._core.status.read()
