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
        spec = runs_pb2.RunSpec(pipeline_yaml=pipeline_yaml, overrides=overrides)
        request = runs_pb2.CreateRunRequest(run_id=run_id, run=runs_pb2.Run(spec=spec))
        return self._run(self._stub.CreateRun, request)

    def fork(
        self, run_id: str, source: str, from_step: str, overrides: Mapping[str, str]
    ) -> runs_pb2.Run:
        """A new run from what `source` finished. Idempotent by `run_id`."""
        request = runs_pb2.ForkRunRequest(
            name=f"runs/{source}", run_id=run_id, from_step=from_step, overrides=overrides
        )
        return self._run(self._stub.ForkRun, request)

    def watch(self, run_id: str) -> Iterator[runs_pb2.Run]:
        """The run, again after each change, each of its states once, until it ends; over as many
        connections as that takes."""
        request = runs_pb2.WatchRunRequest(name=f"runs/{run_id}")
        for message in self.watch_stream(self._stub.WatchRun, request):
            if message.HasField("run"):  # else a heartbeat
                yield message.run

    def get(self, run_id: str) -> runs_pb2.Run:
        return self._run(self._stub.GetRun, runs_pb2.GetRunRequest(name=f"runs/{run_id}"))

    def newest(self, limit: int) -> list[runs_pb2.Run]:
        """Newest first."""
        runs: list[runs_pb2.Run] = []
        request = runs_pb2.ListRunsRequest()
        while len(runs) < limit:
            request.page_size = min(limit - len(runs), 200)
            page = self._call(self._stub.ListRuns, request)
            runs += page.runs
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return runs

    def pause(self, run_id: str) -> runs_pb2.Run:
        return self._run(self._stub.PauseRun, runs_pb2.PauseRunRequest(name=f"runs/{run_id}"))

    def resume(self, run_id: str) -> runs_pb2.Run:
        return self._run(self._stub.ResumeRun, runs_pb2.ResumeRunRequest(name=f"runs/{run_id}"))

    def cancel(self, run_id: str) -> runs_pb2.Run:
        return self._run(self._stub.CancelRun, runs_pb2.CancelRunRequest(name=f"runs/{run_id}"))

    def delete(self, run_id: str) -> None:
        self._call(self._stub.DeleteRun, runs_pb2.DeleteRunRequest(name=f"runs/{run_id}"))

    def artifact(self, reference: str) -> artifacts_pb2.Artifact:
        request = artifacts_pb2.GetArtifactRequest(name=f"artifacts/{reference}")
        artifact: artifacts_pb2.Artifact = self._call(self._artifacts.GetArtifact, request).artifact
        return artifact

    def _run(self, method: Callable[..., Any], request: Any) -> runs_pb2.Run:
        run: runs_pb2.Run = self._call(method, request).run
        return run

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self.call(method, request, _CALL_S)
