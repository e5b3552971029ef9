"""A thin client of the coordinator through the gateway's gRPC API, as any other client would be:
generated stubs, an address and a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.v1 import artifacts_pb2, artifacts_pb2_grpc, runs_pb2, runs_pb2_grpc

_CALL_S = 30.0


class RunClient(GatewayConnection):
    """Runs and artifacts."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        super().__init__(address, key)
        self._stub: Any = runs_pb2_grpc.RunServiceStub(self.channel)
        self._artifacts: Any = artifacts_pb2_grpc.ArtifactServiceStub(self.channel)

    def submit(self, run_id: str, pipeline_yaml: str, overrides: Mapping[str, str]) -> runs_pb2.Run:
        """Idempotent by `run_id`."""
        request = runs_pb2.SubmitRunRequest(
            run_id=run_id, pipeline_yaml=pipeline_yaml, overrides=overrides
        )
        run: runs_pb2.Run = self._call(self._stub.SubmitRun, request).run
        return run

    def fork(
        self, run_id: str, source: str, from_step: str, overrides: Mapping[str, str]
    ) -> runs_pb2.Run:
        """A new run from what `source` finished. Idempotent by `run_id`."""
        request = runs_pb2.ForkRunRequest(
            run_id=run_id, source_run_id=source, from_step=from_step, overrides=overrides
        )
        run: runs_pb2.Run = self._call(self._stub.ForkRun, request).run
        return run

    def watch(self, run_id: str) -> Iterator[runs_pb2.Run]:
        """The run, again after each change, each of its states once, until it ends; over as many
        connections as that takes."""
        revision = 0
        for message in self.watch_stream(
            self._stub.WatchRun, runs_pb2.WatchRunRequest(run_id=run_id)
        ):
            # A coordinator of a version without resume tokens begins with the run as it is.
            if message.run.revision > revision:
                revision = message.run.revision
                yield message.run

    def get(self, run_id: str) -> runs_pb2.Run:
        run: runs_pb2.Run = self._call(self._stub.GetRun, runs_pb2.GetRunRequest(run_id=run_id)).run
        return run

    def newest(self, limit: int) -> list[runs_pb2.Run]:
        """Newest first."""
        return list(self._call(self._stub.ListRuns, runs_pb2.ListRunsRequest(limit=limit)).runs)

    def pause(self, run_id: str) -> runs_pb2.Run:
        run: runs_pb2.Run = self._call(
            self._stub.PauseRun, runs_pb2.PauseRunRequest(run_id=run_id)
        ).run
        return run

    def resume(self, run_id: str) -> runs_pb2.Run:
        run: runs_pb2.Run = self._call(
            self._stub.ResumeRun, runs_pb2.ResumeRunRequest(run_id=run_id)
        ).run
        return run

    def cancel(self, run_id: str) -> runs_pb2.Run:
        run: runs_pb2.Run = self._call(
            self._stub.CancelRun, runs_pb2.CancelRunRequest(run_id=run_id)
        ).run
        return run

    def artifact(self, reference: str) -> artifacts_pb2.Artifact:
        request = artifacts_pb2.GetArtifactRequest(name=f"artifacts/{reference}")
        artifact: artifacts_pb2.Artifact = self._call(self._artifacts.GetArtifact, request).artifact
        return artifact

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self.call(method, request, _CALL_S)
