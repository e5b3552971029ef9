"""A thin client of PreferenceService through the gateway's gRPC API: generated stubs, an address
and a key. Every call raises the PlinthError that the platform raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plinth.shared.errors import InvalidArgument
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

_CALL_S = 60.0
_IMPORT_LINES = 500
_IMPORT_BYTES = 2 << 20


class PreferenceClient(GatewayConnection):
    """One collection of tasks."""

    def __init__(self, address: GatewayAddress | str, key: str, collection: str) -> None:
        super().__init__(address, key)
        self._stub: Any = rpc.PreferenceServiceStub(self.channel)
        self._collection = collection

    def add(self, tasks: list[pb.TaskSpec]) -> int:
        """How many; those that are there already count too."""
        for begin in range(0, len(tasks), 20):
            ask = pb.CreateTasksRequest(
                collection=self._collection, tasks=tasks[begin : begin + 20]
            )
            self._call(self._stub.CreateTasks, ask)
        return len(tasks)

    def newest(self, limit: int) -> pb.ListPreferenceTasksResponse:
        ask = pb.ListPreferenceTasksRequest(collection=self._collection, limit=limit)
        answer: pb.ListPreferenceTasksResponse = self._call(self._stub.ListPreferenceTasks, ask)
        return answer

    def lease(self, annotator: str, seconds: int, task_id: str = "") -> pb.LeaseTaskResponse:
        """NotFound (NO_TASK) when there is none."""
        ask = pb.LeaseTaskRequest(
            collection=self._collection,
            annotator=annotator,
            task_id=task_id,
            lease_seconds=seconds,
        )
        answer: pb.LeaseTaskResponse = self._call(self._stub.LeaseTask, ask)
        return answer

    def release(self, lease: pb.LeaseTaskResponse, *, skip: bool) -> None:
        self._call(
            self._stub.ReleaseLease,
            pb.ReleaseLeaseRequest(
                collection=self._collection,
                task_id=lease.task_id,
                annotator=lease.annotator,
                fence=lease.fence,
                skip=skip,
            ),
        )

    def submit(
        self, task_id: str, annotator: str, fence: int, ranking: list[list[str]], reason: str
    ) -> int:
        """The judgement's number; an empty ranking says that all are bad."""
        ask = pb.SubmitJudgementRequest(
            collection=self._collection,
            task_id=task_id,
            annotator=annotator,
            fence=fence,
            ranking=[pb.Tier(response_ids=tier) for tier in ranking],
            all_bad=not ranking,
            reason=reason,
        )
        return int(self._call(self._stub.SubmitJudgement, ask).revision)

    def report(self) -> pb.GetPreferenceReportResponse:
        ask = pb.GetPreferenceReportRequest(collection=self._collection)
        answer: pb.GetPreferenceReportResponse = self._call(self._stub.GetPreferenceReport, ask)
        return answer

    def export(self, shape: str) -> Iterator[bytes]:
        """Whole lines."""
        ask = pb.ExportPairsRequest(collection=self._collection, shape=shape)
        for chunk in self.stream(self._stub.ExportPairs, ask):
            yield chunk.jsonl

    def import_file(self, path: Path, source: int, annotator: str) -> tuple[int, int]:
        """(lines that are new, lines that were there already)."""
        imported = known = 0
        for part in _parts(path):
            ask = pb.ImportPairsRequest(
                collection=self._collection, jsonl=part, annotator=annotator
            )
            ask.source = pb.JudgementSource.ValueType(source)
            answer = self._call(self._stub.ImportPairs, ask)
            imported, known = imported + answer.imported, known + answer.known
        return imported, known

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self.call(method, request, _CALL_S)


def _parts(path: Path) -> Iterator[bytes]:
    """The file's lines in groups that one call takes."""
    group: list[bytes] = []
    size = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if len(line) > _IMPORT_BYTES:
                raise InvalidArgument(f"{path}:{number}: longer than {_IMPORT_BYTES:,} bytes")
            if group and (len(group) >= _IMPORT_LINES or size + len(line) > _IMPORT_BYTES):
                yield b"".join(group)
                group, size = [], 0
            if line.strip():
                group.append(line)
                size += len(line)
    if group:
        yield b"".join(group)
