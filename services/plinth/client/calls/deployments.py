"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, mask, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import deployments_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CREATE_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "CreateDeployment")
_GET_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "GetDeployment")
_LIST_DEPLOYMENTS = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "ListDeployments")
_UPDATE_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "UpdateDeployment")
_DELETE_DEPLOYMENT = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "DeleteDeployment")
_REPORT_OUTCOME = Method.of(deployments_pb2.DESCRIPTOR, "DeploymentService", "ReportOutcome")


class DeploymentService:
    """Deployments: which models are served, from which artifacts, by how many shards. What is
    written is what is wanted; the platform makes it so within seconds to minutes, and the
    status says how far it is. Canaries, which pipeline steps of that kind make, are listed too
    and can not be changed here."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def create_deployment(
        self,
        deployment_id: str = "",
        *,
        deployment: deployments_pb2.Deployment | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Serves a model. Idempotent by deployment_id: the same specification again gives the
        deployment that is there, another one is ALREADY_EXISTS (DEPLOYMENT_EXISTS).

        deployment_id: The name that clients ask for: 1 to 64 of a-z 0-9 . _ -.
        deployment: Its spec; the other fields are the platform's to set.
        """
        response: deployments_pb2.CreateDeploymentResponse = self._calls.unary(
            _CREATE_DEPLOYMENT,
            request(
                deployments_pb2.CreateDeploymentRequest,
                deployment_id=deployment_id,
                deployment=deployment,
            ),
            timeout,
            metadata,
        )
        return response.deployment

    def get_deployment(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """One deployment. NOT_FOUND (DEPLOYMENT_NOT_FOUND) if none is called that.

        name: "deployments/chat".
        """
        response: deployments_pb2.GetDeploymentResponse = self._calls.unary(
            _GET_DEPLOYMENT,
            request(deployments_pb2.GetDeploymentRequest, name=name),
            timeout,
            metadata,
        )
        return response.deployment

    def list_deployments(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[deployments_pb2.Deployment, deployments_pb2.ListDeploymentsResponse]:
        """All deployments, by name.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        filter: Comparisons joined by AND: `state = FAILED AND artifact = "chat@*"`. Of name,
          state, artifact, owner.tenant, owner.key_id, update_time, and canary.deployment (empty
          unless it is a canary). Empty: all.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_DEPLOYMENTS, asked, timeout, metadata),
            request(deployments_pb2.ListDeploymentsRequest, page_size=page_size, filter=filter),
            "deployments",
        )

    def update_deployment(
        self,
        deployment: deployments_pb2.Deployment | None = None,
        *,
        update_mask: Iterable[str] | None = None,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Changes what is wanted: the fields that update_mask names. ABORTED (ETAG_MISMATCH) if an
        etag is given and the deployment has changed since.

        deployment: Its name and what is to be; its etag, if it may only be changed from what
          was read.
        update_mask: "spec", or fields of it ("spec.shards"). Empty: the fields of `spec` that
          are set; "*": all.
        allow_missing: Makes the deployment if there is none.
        """
        response: deployments_pb2.UpdateDeploymentResponse = self._calls.unary(
            _UPDATE_DEPLOYMENT,
            request(
                deployments_pb2.UpdateDeploymentRequest,
                deployment=deployment,
                update_mask=mask(update_mask),
                allow_missing=allow_missing,
            ),
            timeout,
            metadata,
        )
        return response.deployment

    def delete_deployment(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Serves the model no more; requests that are under way end first, and the artifact stays.
        ABORTED (ETAG_MISMATCH) as in UpdateDeployment.

        name: "deployments/chat".
        etag: Deployment.etag: only if it has not changed since. Empty: in any case.
        """
        self._calls.unary(
            _DELETE_DEPLOYMENT,
            request(deployments_pb2.DeleteDeploymentRequest, name=name, etag=etag),
            timeout,
            metadata,
        )

    def report_outcome(
        self,
        name: str = "",
        *,
        response_id: str | None = None,
        revision: str | None = None,
        good: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ReportOutcomeResponse:
        """A verdict on an answer while its model has a canary: what the canary step decides by.

        name: The deployment that was asked: "deployments/chat".
        response_id: The `id` that the response has ("chatcmpl-…", by either API), or its
          x-request-id. It can be judged once, within an hour, by the tenant that asked.
        revision: A revision ("chat@8") as a whole; for keys with the scope "runs" of the tenant
          that made the deployment (PERMISSION_DENIED, OTHER_TENANT, else).
        good: Whether it did well.
        """
        response: deployments_pb2.ReportOutcomeResponse = self._calls.unary(
            _REPORT_OUTCOME,
            request(
                deployments_pb2.ReportOutcomeRequest,
                name=name,
                response_id=response_id,
                revision=revision,
                good=good,
            ),
            timeout,
            metadata,
        )
        return response


class AsyncDeploymentService:
    """Deployments: which models are served, from which artifacts, by how many shards. What is
    written is what is wanted; the platform makes it so within seconds to minutes, and the
    status says how far it is. Canaries, which pipeline steps of that kind make, are listed too
    and can not be changed here."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def create_deployment(
        self,
        deployment_id: str = "",
        *,
        deployment: deployments_pb2.Deployment | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Serves a model. Idempotent by deployment_id: the same specification again gives the
        deployment that is there, another one is ALREADY_EXISTS (DEPLOYMENT_EXISTS).

        deployment_id: The name that clients ask for: 1 to 64 of a-z 0-9 . _ -.
        deployment: Its spec; the other fields are the platform's to set.
        """
        response: deployments_pb2.CreateDeploymentResponse = await self._calls.unary(
            _CREATE_DEPLOYMENT,
            request(
                deployments_pb2.CreateDeploymentRequest,
                deployment_id=deployment_id,
                deployment=deployment,
            ),
            timeout,
            metadata,
        )
        return response.deployment

    async def get_deployment(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """One deployment. NOT_FOUND (DEPLOYMENT_NOT_FOUND) if none is called that.

        name: "deployments/chat".
        """
        response: deployments_pb2.GetDeploymentResponse = await self._calls.unary(
            _GET_DEPLOYMENT,
            request(deployments_pb2.GetDeploymentRequest, name=name),
            timeout,
            metadata,
        )
        return response.deployment

    def list_deployments(
        self,
        page_size: int = 0,
        *,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[deployments_pb2.Deployment, deployments_pb2.ListDeploymentsResponse]:
        """All deployments, by name.

        page_size: At most so many; 0: 50. More than 1,000 are 1,000.
        filter: Comparisons joined by AND: `state = FAILED AND artifact = "chat@*"`. Of name,
          state, artifact, owner.tenant, owner.key_id, update_time, and canary.deployment (empty
          unless it is a canary). Empty: all.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_DEPLOYMENTS, asked, timeout, metadata),
            request(deployments_pb2.ListDeploymentsRequest, page_size=page_size, filter=filter),
            "deployments",
        )

    async def update_deployment(
        self,
        deployment: deployments_pb2.Deployment | None = None,
        *,
        update_mask: Iterable[str] | None = None,
        allow_missing: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.Deployment:
        """Changes what is wanted: the fields that update_mask names. ABORTED (ETAG_MISMATCH) if an
        etag is given and the deployment has changed since.

        deployment: Its name and what is to be; its etag, if it may only be changed from what
          was read.
        update_mask: "spec", or fields of it ("spec.shards"). Empty: the fields of `spec` that
          are set; "*": all.
        allow_missing: Makes the deployment if there is none.
        """
        response: deployments_pb2.UpdateDeploymentResponse = await self._calls.unary(
            _UPDATE_DEPLOYMENT,
            request(
                deployments_pb2.UpdateDeploymentRequest,
                deployment=deployment,
                update_mask=mask(update_mask),
                allow_missing=allow_missing,
            ),
            timeout,
            metadata,
        )
        return response.deployment

    async def delete_deployment(
        self,
        name: str = "",
        *,
        etag: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Serves the model no more; requests that are under way end first, and the artifact stays.
        ABORTED (ETAG_MISMATCH) as in UpdateDeployment.

        name: "deployments/chat".
        etag: Deployment.etag: only if it has not changed since. Empty: in any case.
        """
        await self._calls.unary(
            _DELETE_DEPLOYMENT,
            request(deployments_pb2.DeleteDeploymentRequest, name=name, etag=etag),
            timeout,
            metadata,
        )

    async def report_outcome(
        self,
        name: str = "",
        *,
        response_id: str | None = None,
        revision: str | None = None,
        good: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> deployments_pb2.ReportOutcomeResponse:
        """A verdict on an answer while its model has a canary: what the canary step decides by.

        name: The deployment that was asked: "deployments/chat".
        response_id: The `id` that the response has ("chatcmpl-…", by either API), or its
          x-request-id. It can be judged once, within an hour, by the tenant that asked.
        revision: A revision ("chat@8") as a whole; for keys with the scope "runs" of the tenant
          that made the deployment (PERMISSION_DENIED, OTHER_TENANT, else).
        good: Whether it did well.
        """
        response: deployments_pb2.ReportOutcomeResponse = await self._calls.unary(
            _REPORT_OUTCOME,
            request(
                deployments_pb2.ReportOutcomeRequest,
                name=name,
                response_id=response_id,
                revision=revision,
                good=good,
            ),
            timeout,
            metadata,
        )
        return response
