"""DeploymentService: served models as desired state, and verdicts on what they answer."""

from __future__ import annotations

import asyncio
from typing import Any

from plinth.coordinator.deployments import ready_shards
from plinth.coordinator.steps.contract import Tools
from plinth.shared.canary import answer_key
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import current_principal
from plinth.shared.manifest import check_name
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import deployments_pb2, deployments_pb2_grpc


class DeploymentServicer(deployments_pb2_grpc.DeploymentServiceServicer):
    """The RPCs; see deployments.proto."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.DeploymentService",
            lambda server: deployments_pb2_grpc.add_DeploymentServiceServicer_to_server(
                self, server
            ),
        )

    async def PutDeployment(
        self, request: deployments_pb2.PutDeploymentRequest, context: Any
    ) -> deployments_pb2.PutDeploymentResponse:
        if request.deployment.canary_of:
            raise InvalidArgument(
                "a pipeline step of kind canary makes canaries: it watches them and takes them "
                "down; this call is for served models",
                field="deployment.canary_of",
            )
        record = await asyncio.to_thread(self._tools.deployments.put, request.deployment)
        assert record.deployment is not None
        return deployments_pb2.PutDeploymentResponse(
            deployment=await self._counted(record.deployment)
        )

    async def ListDeployments(
        self, request: deployments_pb2.ListDeploymentsRequest, context: Any
    ) -> deployments_pb2.ListDeploymentsResponse:
        wanted = await asyncio.to_thread(self._tools.deployments.list)
        return deployments_pb2.ListDeploymentsResponse(
            deployments=[await self._counted(d) for d in wanted]
        )

    async def DeleteDeployment(
        self, request: deployments_pb2.DeleteDeploymentRequest, context: Any
    ) -> deployments_pb2.DeleteDeploymentResponse:
        await asyncio.to_thread(self._tools.deployments.delete, request.name)
        return deployments_pb2.DeleteDeploymentResponse()

    async def ReportOutcome(
        self, request: deployments_pb2.ReportOutcomeRequest, context: Any
    ) -> deployments_pb2.ReportOutcomeResponse:
        name = check_name(request.name, "name")
        if bool(request.request_id) == bool(request.revision):
            raise InvalidArgument("give one of request_id and revision", field="request_id")
        principal = current_principal()
        canaries = self._tools.canaries
        if request.revision:
            principal.require("runs")
            role = await canaries.report_revision(name, request.revision, good=request.good)
        else:
            answer = answer_key(principal.tenant, request.request_id)
            role = await canaries.report(name, answer=answer, good=request.good)
        return deployments_pb2.ReportOutcomeResponse(role=role)

    async def _counted(self, deployment: deployments_pb2.Deployment) -> deployments_pb2.Deployment:
        counted = deployments_pb2.Deployment()
        counted.CopyFrom(deployment)
        counted.ready_shards = await ready_shards(
            self._tools.registry, deployment.name, deployment.artifact
        )
        return counted
