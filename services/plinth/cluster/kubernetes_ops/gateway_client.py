"""The platform's own figures, which Kubernetes doesn't know: through the gateway's gRPC API.

Without an address the gateway is found in the cluster and its port forwarded, so that a kubeconfig
and an API key (scopes "deployments", "runs", "artifacts"; or "admin") are all that it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.outcome import command, kubectl
from plinth.cluster.kubernetes_ops.release import Release, is_ready
from plinth.cluster.kubernetes_ops.sockets import forwarded
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
)

GRPC_PORT = 8081
CALL_S = 15.0
PAGE = 200
SCOPES = ("deployments", "runs", "artifacts")


class GatewayClient(GatewayConnection):
    """The calls that `plinth k8s` makes."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        super().__init__(address, key)
        self._operations: Any = operations_pb2_grpc.OperationsServiceStub(self.channel)
        self._runs: Any = runs_pb2_grpc.RunServiceStub(self.channel)
        self._deployments: Any = deployments_pb2_grpc.DeploymentServiceStub(self.channel)
        self._artifacts: Any = artifacts_pb2_grpc.ArtifactServiceStub(self.channel)

    def status(self) -> operations_pb2.GetStatusResponse:
        found: operations_pb2.GetStatusResponse = self._call(
            self._operations.GetStatus, operations_pb2.GetStatusRequest()
        )
        return found

    def runs(self, limit: int) -> list[runs_pb2.Run]:
        """Newest first."""
        request = runs_pb2.ListRunsRequest(page_size=limit)
        return list(self._call(self._runs.ListRuns, request).runs)

    def deployments(self) -> list[deployments_pb2.Deployment]:
        """What is to be served, canaries too."""
        found: list[deployments_pb2.Deployment] = []
        request = deployments_pb2.ListDeploymentsRequest(page_size=PAGE)
        while True:
            page = self._call(self._deployments.ListDeployments, request)
            found += page.deployments
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def scale_deployment(
        self, deployment: deployments_pb2.Deployment, shards: int
    ) -> deployments_pb2.Deployment:
        """Wants `shards` of it. Aborted if it is no longer as it was read."""
        wanted = deployments_pb2.Deployment(
            name=deployment.name,
            spec=deployments_pb2.DeploymentSpec(shards=shards),
            etag=deployment.etag,
        )
        request = deployments_pb2.UpdateDeploymentRequest(
            deployment=wanted, update_mask=FieldMask(paths=["spec.shards"])
        )
        updated: deployments_pb2.Deployment = self._call(
            self._deployments.UpdateDeployment, request
        ).deployment
        return updated

    def artifact(self, reference: str) -> artifacts_pb2.Artifact:
        """NotFound when nothing is called that."""
        request = artifacts_pb2.GetArtifactRequest(name=f"artifacts/{reference}")
        found: artifacts_pb2.Artifact = self._call(self._artifacts.GetArtifact, request).artifact
        return found

    def _call(self, method: Any, request: Any) -> Any:
        return self.call(method, request, CALL_S)


@contextlib.contextmanager
def opened(api: Api, release: Release, *, address: str | None, key: str) -> Iterator[GatewayClient]:
    """A gateway for as long as the block lasts. FailedPrecondition without a key."""
    if not key:
        raise FailedPrecondition(no_key(release), reason="MISSING_API_KEY")
    with contextlib.ExitStack() as stack:
        where = address or stack.enter_context(forwarded(api, gateway_pod(api, release), GRPC_PORT))
        yield stack.enter_context(GatewayClient(where, key))


def gateway_pod(api: Api, release: Release) -> str:
    """Name of a gateway that is ready; Unavailable when none is."""
    for pod in api.items("list pods", release.of("gateway")):
        if is_ready(pod):
            return str(pod["metadata"]["name"])
    raise Unavailable(f"no gateway of {release.name} is ready; see `plinth k8s doctor`")


def in_coordinator(release: Release, *words: str) -> str:
    """A command line that runs `words` in a coordinator's pod, where the store and Redis are."""
    pods = kubectl(release.namespace, "get", "pod", "-l", release.of("coordinator"), "-o", "name")
    start = kubectl(release.namespace, "exec", "-c", "ray")
    return f"{start} $({pods} | head -n 1) -- {command(*words)}"


def no_key(release: Release) -> str:
    """What to do without an API key."""
    scopes = [word for scope in SCOPES for word in ("--scope", scope)]
    make = in_coordinator(
        release, "plinth", "keys", "create", "--local", "--label", "operator", *scopes
    )
    return f"no API key: set PLINTH_API_KEY to the one that this prints: {make}"
