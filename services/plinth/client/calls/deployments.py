"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import deployments_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_PUT_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "PutDeployment")
_LIST_DEPLOYMENTS = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "ListDeployments")
_DELETE_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "DeleteDeployment")
_REPORT_OUTCOME = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "ReportOutcome")


class DeploymentService:
    """Served models: desired state, kept on the store, made real by the reconciler."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def put_deployment(
        self,
        deployment: deployments_pb2.Deployment | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Served models: desired state, kept on the store, made real by the reconciler."""
        response: deployments_pb2.PutDeploymentResponse = self._calls.unary(
            _PUT_DEPLOYMENT,
            request(deployments_pb2.PutDeploymentRequest, deployment=deployment),
            timeout,
            metadata,
        )
        return response.deployment

    def list_deployments(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ListDeploymentsResponse:
        response: deployments_pb2.ListDeploymentsResponse = self._calls.unary(
            _LIST_DEPLOYMENTS, request(deployments_pb2.ListDeploymentsRequest), timeout, metadata
        )
        return response

    def delete_deployment(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._calls.unary(
            _DELETE_DEPLOYMENT,
            request(deployments_pb2.DeleteDeploymentRequest, name=name),
            timeout,
            metadata,
        )

    def report_outcome(
        self,
        name: str = "",
        *,
        request_id: str = "",
        revision: str = "",
        good: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ReportOutcomeResponse:
        """A verdict on an answer while its model has a canary: what the canary step may decide by.

        name: The served name that was asked ("chat").
        request_id: The answer's x-request-id; it can be judged once, within an hour, by who
          asked.
        revision: Instead of it, for keys with the scope "runs": the revision that did well or
          not ("chat@8").
        """
        response: deployments_pb2.ReportOutcomeResponse = self._calls.unary(
            _REPORT_OUTCOME,
            request(
                deployments_pb2.ReportOutcomeRequest,
                name=name,
                request_id=request_id,
                revision=revision,
                good=good,
            ),
            timeout,
            metadata,
        )
        return response


class AsyncDeploymentService:
    """Served models: desired state, kept on the store, made real by the reconciler."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def put_deployment(
        self,
        deployment: deployments_pb2.Deployment | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Served models: desired state, kept on the store, made real by the reconciler."""
        response: deployments_pb2.PutDeploymentResponse = await self._calls.unary(
            _PUT_DEPLOYMENT,
            request(deployments_pb2.PutDeploymentRequest, deployment=deployment),
            timeout,
            metadata,
        )
        return response.deployment

    async def list_deployments(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ListDeploymentsResponse:
        response: deployments_pb2.ListDeploymentsResponse = await self._calls.unary(
            _LIST_DEPLOYMENTS, request(deployments_pb2.ListDeploymentsRequest), timeout, metadata
        )
        return response

    async def delete_deployment(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        await self._calls.unary(
            _DELETE_DEPLOYMENT,
            request(deployments_pb2.DeleteDeploymentRequest, name=name),
            timeout,
            metadata,
        )

    async def report_outcome(
        self,
        name: str = "",
        *,
        request_id: str = "",
        revision: str = "",
        good: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ReportOutcomeResponse:
        """A verdict on an answer while its model has a canary: what the canary step may decide by.

        name: The served name that was asked ("chat").
        request_id: The answer's x-request-id; it can be judged once, within an hour, by who
          asked.
        revision: Instead of it, for keys with the scope "runs": the revision that did well or
          not ("chat@8").
        """
        response: deployments_pb2.ReportOutcomeResponse = await self._calls.unary(
            _REPORT_OUTCOME,
            request(
                deployments_pb2.ReportOutcomeRequest,
                name=name,
                request_id=request_id,
                revision=revision,
                good=good,
            ),
            timeout,
            metadata,
        )
        return response
