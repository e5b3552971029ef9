"""A thin client of the coordinator through the gateway's gRPC API, as any other client would be:
generated stubs, an address and a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from plinth.shared.errors import Cancelled, Unavailable
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.shared.rpc.status import from_rpc_error
from plinth.v1 import common_pb2, coordinator_pb2_grpc
from plinth.v1 import coordinator_pb2 as pb

_CALL_S = 30.0
# How long the door may be shut (a gateway that restarts) before watching gives up.
_PATIENCE_S = 120.0


class RunClient(GatewayConnection):
    """Runs and artifacts."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        super().__init__(address, key)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self.channel)

    def submit(self, run_id: str, pipeline_yaml: str, overrides: Mapping[str, str]) -> pb.Run:
        """Idempotent by `run_id`."""
        request = pb.SubmitRunRequest(
            run_id=run_id, pipeline_yaml=pipeline_yaml, overrides=overrides
        )
        run: pb.Run = self._call(self._stub.SubmitRun, request).run
        return run

    def fork(
        self, run_id: str, source: str, from_step: str, overrides: Mapping[str, str]
    ) -> pb.Run:
        """A new run from what `source` finished. Idempotent by `run_id`."""
        request = pb.ForkRunRequest(
            run_id=run_id, source_run_id=source, from_step=from_step, overrides=overrides
        )
        run: pb.Run = self._call(self._stub.ForkRun, request).run
        return run

    def watch(self, run_id: str) -> Iterator[pb.Run]:
        """The run, again after each change, until it ends. A door that is shut for a moment is
        knocked at again."""
        shut_since: float | None = None
        revision = 0
        while True:
            request = pb.WatchRunRequest(run_id=run_id)
            try:
                for message in self._stub.WatchRun(request, metadata=self._metadata):
                    shut_since = None
                    if message.run.revision > revision:
                        revision = message.run.revision
                        yield message.run
                return
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                shut_since = shut_since or time.monotonic()
                # A gateway that drains cancels the streams that do not end by themselves.
                if not isinstance(error, Unavailable | Cancelled) or (
                    time.monotonic() - shut_since > _PATIENCE_S
                ):
                    raise error from raised
            time.sleep(1.0)

    def get(self, run_id: str) -> pb.Run:
        run: pb.Run = self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id)).run
        return run

    def newest(self, limit: int) -> list[pb.Run]:
        """Newest first."""
        return list(self._call(self._stub.ListRuns, pb.ListRunsRequest(limit=limit)).runs)

    def pause(self, run_id: str) -> pb.Run:
        run: pb.Run = self._call(self._stub.PauseRun, pb.PauseRunRequest(run_id=run_id)).run
        return run

    def resume(self, run_id: str) -> pb.Run:
        run: pb.Run = self._call(self._stub.ResumeRun, pb.ResumeRunRequest(run_id=run_id)).run
        return run

    def cancel(self, run_id: str) -> pb.Run:
        run: pb.Run = self._call(self._stub.CancelRun, pb.CancelRunRequest(run_id=run_id)).run
        return run

    def artifact(self, reference: str) -> common_pb2.Artifact:
        request = pb.GetArtifactRequest(reference=reference)
        artifact: common_pb2.Artifact = self._call(self._stub.GetArtifact, request).artifact
        return artifact

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self.call(method, request, _CALL_S)
