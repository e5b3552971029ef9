"""A gateway's gRPC API with scripted answers, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from plinth.shared.errors import NotFound, PlinthError
from plinth.shared.rpc.status import to_status
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

KEY = "plinth-a-key-for-tests"


class ScriptedGateway(
    operations_pb2_grpc.OperationsServiceServicer,
    runs_pb2_grpc.RunServiceServicer,
    deployments_pb2_grpc.DeploymentServiceServicer,
    artifacts_pb2_grpc.ArtifactServiceServicer,
):
    """What a test says is there. Served models and artifacts are desired state, as on the store."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._credentials = credentials
        self.status = operations_pb2.GetStatusResponse()
        self.statuses: list[operations_pb2.GetStatusResponse] = []  # before `status`, one a call
        self.runs: list[runs_pb2.Run] = []
        self.watched: list[runs_pb2.Run] = []  # what WatchRun tells, one after another
        self.deployments: dict[str, deployments_pb2.Deployment] = {}
        self.artifacts: dict[str, artifacts_pb2.Artifact] = {}
        self.submitted: list[runs_pb2.CreateRunRequest] = []
        self.calls: list[str] = []

    def serve(
        self,
        name: str,
        artifact: str,
        shards: int = 1,
        *,
        canary: deployments_pb2.Canary | None = None,
        **more: Any,
    ) -> None:
        """more: of the specification."""
        self.deployments[name] = deployments_pb2.Deployment(
            name=f"deployments/{name}",
            spec=deployments_pb2.DeploymentSpec(artifact=artifact, shards=shards, **more),
            status=deployments_pb2.DeploymentStatus(canary=canary),
        )

    def store(self, name: str, version: int, *aliases: str, kind: str = "model") -> None:
        one = artifacts_pb2.Artifact(
            name=f"artifacts/{name}@{version}",
            artifact_id=name,
            version=version,
            kind=artifacts_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{kind.upper()}"),
            aliases=aliases,
        )
        for reference in (f"{name}@{version}", *(f"{name}:{alias}" for alias in aliases)):
            self.artifacts[f"artifacts/{reference}"] = one

    def __enter__(self) -> ScriptedGateway:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(self, self._server)
        runs_pb2_grpc.add_RunServiceServicer_to_server(self, self._server)
        deployments_pb2_grpc.add_DeploymentServiceServicer_to_server(self, self._server)
        artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(self, self._server)
        if self._credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _enter(self, context: Any, call: str) -> None:
        self.calls.append(call)
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {KEY}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Incorrect API key")

    def GetStatus(self, request: Any, context: Any) -> operations_pb2.GetStatusResponse:
        self._enter(context, "GetStatus")
        return self.statuses.pop(0) if self.statuses else self.status

    def ListRuns(self, request: Any, context: Any) -> runs_pb2.ListRunsResponse:
        self._enter(context, "ListRuns")
        return runs_pb2.ListRunsResponse(runs=self.runs)

    def CreateRun(self, request: Any, context: Any) -> runs_pb2.CreateRunResponse:
        self._enter(context, "CreateRun")
        self.submitted.append(request)
        return runs_pb2.CreateRunResponse(run=runs_pb2.Run(name=f"runs/{request.run_id}"))

    def WatchRun(self, request: Any, context: Any) -> Iterator[runs_pb2.WatchRunResponse]:
        self._enter(context, "WatchRun")
        for number, run in enumerate(self.watched):
            run.name, run.status.revision = request.name, number + 1
            yield runs_pb2.WatchRunResponse(run=run)

    def ListDeployments(
        self, request: Any, context: Any
    ) -> deployments_pb2.ListDeploymentsResponse:
        self._enter(context, "ListDeployments")
        return deployments_pb2.ListDeploymentsResponse(deployments=self.deployments.values())

    def UpdateDeployment(
        self, request: Any, context: Any
    ) -> deployments_pb2.UpdateDeploymentResponse:
        self._enter(context, "UpdateDeployment")
        present = self.deployments[request.deployment.name.rpartition("/")[2]]
        request.update_mask.MergeMessage(request.deployment, present)
        return deployments_pb2.UpdateDeploymentResponse(deployment=present)

    def GetArtifact(self, request: Any, context: Any) -> artifacts_pb2.GetArtifactResponse:
        self._enter(context, "GetArtifact")
        if request.name not in self.artifacts:
            reference = request.name.removeprefix("artifacts/")
            self._fail(context, NotFound(f"no artifact is called {reference}"))
        return artifacts_pb2.GetArtifactResponse(artifact=self.artifacts[request.name])

    @staticmethod
    def _fail(context: Any, error: PlinthError) -> None:
        context.abort_with_status(to_status(error))


def shard(address: str, *, running: int = 0, kv: float = 0.0) -> operations_pb2.ReplicaStatus:
    return operations_pb2.ReplicaStatus(
        stage="inference",
        replica_id=f"shard-{address}",
        address=f"{address}:50051",
        running=running,
        kv_use=kv,
        revisions=["chat@7"],
    )


def status(*replicas: operations_pb2.ReplicaStatus) -> operations_pb2.GetStatusResponse:
    return operations_pb2.GetStatusResponse(replicas=replicas)


def canary_run(state: int, detail: str = "", error: str = "") -> runs_pb2.Run:
    step = runs_pb2.Step(
        step_id="canary",
        kind=runs_pb2.STEP_KIND_CANARY,
        state=runs_pb2.STEP_STATE_RUNNING,
        detail=detail,
    )
    status = runs_pb2.RunStatus(display_name="rollout-chat", state=state, steps=[step], error=error)
    return runs_pb2.Run(name="runs/rollout-1", status=status)
