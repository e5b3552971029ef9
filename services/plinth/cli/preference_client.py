"""A thin client of PreferenceService through the gateway's gRPC API: generated stubs, an address
and a key. Every call raises the PlinthError that the platform raised."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

_CALL_S = 60.0
_ADD_TASKS = 20
_IMPORT_LINES = 500
_IMPORT_BYTES = 2 << 20


class PreferenceClient(GatewayConnection):
    """One collection of tasks."""

    def __init__(self, address: GatewayAddress | str, key: str, collection: str) -> None:
        super().__init__(address, key)
        self._stub: Any = rpc.PreferenceServiceStub(self.channel)
        self._collection = collection

    def add(self, tasks: Sequence[tuple[str, pb.TaskSpec]]) -> int:
        """How many of the (place, task); those that are there already count too. What is wrong with
        one is told with its place."""
        for begin in range(0, len(tasks), _ADD_TASKS):
            part = tasks[begin : begin + _ADD_TASKS]
            ask = pb.CreateTasksRequest(
                collection=self._collection, tasks=[spec for _, spec in part]
            )
            try:
                self._call(self._stub.CreateTasks, ask)
            except InvalidArgument as error:
                if (found := re.match(r"tasks\.(\d+)", error.field)) is None:
                    raise
                message = error.message.replace(found[0], part[int(found[1])][0], 1)
                raise InvalidArgument(message, reason=error.reason, field=error.field) from error
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
        """Whole lines; over as many connections as it takes."""
        ask = pb.ExportPairsRequest(collection=self._collection, shape=shape)
        for chunk in self.watch_stream(self._stub.ExportPairs, ask):
            yield chunk.jsonl

    def import_file(
        self, path: Path, source: int, annotator: str, *, check_only: bool
    ) -> pb.ImportPairsResponse:
        """What became of all its lines, or with `check_only` what would, over all the calls that
        the file takes. InvalidArgument names the file and the line that is wrong."""
        total = pb.ImportPairsResponse()
        said: dict[tuple[str, str], str] = {}  # of a task by a judge: what would stand
        for first, part in _parts(path):
            ask = pb.ImportPairsRequest(
                collection=self._collection,
                jsonl=part,
                annotator=annotator,
                source=pb.JudgementSource.ValueType(source),
                first_line=first,
                check_only=check_only,
            )
            try:
                answer = self._call(self._stub.ImportPairs, ask)
            except PlinthError as error:
                if not error.message.startswith("line "):
                    raise
                where = f"{path}:{error.message.removeprefix('line ')}"
                raise type(error)(where, reason=error.reason, field=error.field) from error
            if check_only:
                _look(answer.lines, said, total)
                continue
            total.imported += answer.imported
            total.known += answer.known
            total.contradictions.extend(answer.contradictions)
        return total

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return self.call(method, request, _CALL_S)


def _look(
    lines: Iterable[pb.ImportLine],
    said: dict[tuple[str, str], str],
    total: pb.ImportPairsResponse,
) -> None:
    """Adds what would become of the lines of one call, after those before: who was first stays."""
    for line in lines:
        key = line.task_id, line.judge
        if line.stands:
            said.setdefault(key, line.stands)
        elif key not in said:
            said[key] = line.says
            total.imported += 1
            continue
        if said[key] == line.says:
            total.known += 1
        else:
            total.contradictions.add(line=line.line, task_id=line.task_id, annotator=line.annotator)


def _parts(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file's lines in groups that one call takes, each with the number of its first. Empty
    lines stay, for the count."""
    group: list[bytes] = []
    size = filled = 0
    first = 1
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if len(line) > _IMPORT_BYTES:
                raise InvalidArgument(f"{path}:{number}: longer than {_IMPORT_BYTES:,} bytes")
            if filled and (filled >= _IMPORT_LINES or size + len(line) > _IMPORT_BYTES):
                yield first, b"".join(group)
                group, size, filled = [], 0, 0
            first = first if group else number
            if line.strip():
                filled += 1
            elif not filled:
                continue  # before the first line of a group: nothing to count
            group.append(line if line.strip() else b"\n")
            size += len(group[-1])
    if filled:
        yield first, b"".join(group)
