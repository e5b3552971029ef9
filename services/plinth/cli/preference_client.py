"""A thin client of PreferenceService through the gateway's gRPC API: generated stubs, an address
and a key. Every call raises the PlinthError that the platform raised."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from plinth.shared.api.enums import number
from plinth.shared.api.times import duration
from plinth.shared.errors import InvalidArgument, NotFound, PlinthError
from plinth.shared.preference_names import COLLECTIONS, REPORTS, TASKS
from plinth.shared.rpc.gateway_channel import GatewayAddress, GatewayConnection
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

_CALL_S = 60.0
_ADD_TASKS = 20
_IMPORT_LINES = 500
_IMPORT_BYTES = 2 << 20


Tasks = list[tuple[str, pb.CreatePreferenceTaskRequest]]


class PreferenceClient(GatewayConnection):
    """One collection of tasks."""

    def __init__(self, address: GatewayAddress | str, key: str, collection: str) -> None:
        super().__init__(address, key)
        self._stub: Any = rpc.PreferenceServiceStub(self.channel)
        self._collection = collection
        self._name = COLLECTIONS.name(collection)

    def add(self, tasks: Tasks) -> int:
        """How many of the (place, task); those that are there already count too. What is wrong with
        one is told with its place."""
        for begin in range(0, len(tasks), _ADD_TASKS):
            part = tasks[begin : begin + _ADD_TASKS]
            ask = pb.BatchCreatePreferenceTasksRequest(
                parent=self._name, requests=[one for _, one in part]
            )
            try:
                self._call(self._stub.BatchCreatePreferenceTasks, ask)
            except InvalidArgument as error:
                if (found := re.match(r"requests\.(\d+)(\.task\.spec)?", error.field)) is None:
                    raise
                message = error.message.replace(found[0], part[int(found[1])][0], 1)
                raise InvalidArgument(message, reason=error.reason, field=error.field) from error
        return len(tasks)

    def newest(self, limit: int) -> list[pb.PreferenceTask]:
        """Without texts."""
        ask = pb.ListPreferenceTasksRequest(parent=self._name, page_size=limit)
        return list(self._call(self._stub.ListPreferenceTasks, ask).tasks)

    def counts(self) -> pb.PreferenceCollectionStatus:
        """All 0 of a collection that never had a task."""
        ask = pb.GetPreferenceCollectionRequest(name=self._name)
        try:
            found = self._call(self._stub.GetPreferenceCollection, ask)
        except NotFound:
            return pb.PreferenceCollectionStatus()
        status: pb.PreferenceCollectionStatus = found.collection.status
        return status

    def lease(self, annotator: str, seconds: int, task_id: str = "") -> pb.PreferenceLease:
        """NotFound (NO_TASK) when there is none."""
        ask = pb.LeasePreferenceTaskRequest(
            parent=self._name,
            annotator=annotator,
            task=self._task(task_id) if task_id else "",
            lease_duration=duration(seconds),
        )
        lease: pb.PreferenceLease = self._call(self._stub.LeasePreferenceTask, ask).lease
        return lease

    def _task(self, task_id: str) -> str:
        return TASKS.name(self._collection, task_id)

    def release(self, lease: pb.PreferenceLease, *, skip: bool) -> None:
        self._call(
            self._stub.ReleasePreferenceLease,
            pb.ReleasePreferenceLeaseRequest(
                name=lease.task,
                annotator=lease.annotator,
                fence=lease.fence,
                skip=skip,
            ),
        )

    def submit(
        self, task_id: str, annotator: str, fence: int, ranking: list[list[str]], reason: str
    ) -> int:
        """The judgement's number; an empty ranking says that all are bad."""
        spec = pb.JudgementSpec(
            ranking=[pb.ResponseTier(response_ids=tier) for tier in ranking],
            all_bad=not ranking,
            reason=reason,
            annotator=annotator,
        )
        ask = pb.CreateJudgementRequest(
            parent=self._task(task_id), judgement=pb.Judgement(spec=spec), fence=fence
        )
        return int(self._call(self._stub.CreateJudgement, ask).judgement.revision)

    def report(self) -> pb.PreferenceReport:
        ask = pb.GetPreferenceReportRequest(name=REPORTS.name(self._collection))
        report: pb.PreferenceReport = self._call(self._stub.GetPreferenceReport, ask).report
        return report

    def export(self, shape: str) -> Iterator[bytes]:
        """Whole lines in the shape "trl" or "hh"; over as many connections as it takes."""
        said = pb.PairShape.ValueType(number(pb.PairShape, shape, "shape"))
        ask = pb.ExportPairsRequest(parent=self._name, shape=said)
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
                parent=self._name,
                jsonl=part,
                annotator=annotator,
                source=pb.JudgementSource.ValueType(source),
                first_line=first,
                validate_only=check_only,
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
            total.imported_count += answer.imported_count
            total.known_count += answer.known_count
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
        key = line.task, line.judge
        if line.recorded_digest:
            said.setdefault(key, line.recorded_digest)
        elif key not in said:
            said[key] = line.ranking_digest
            total.imported_count += 1
            continue
        if said[key] == line.ranking_digest:
            total.known_count += 1
        else:
            total.contradictions.add(line=line.line, task=line.task, annotator=line.annotator)


def _parts(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file's lines in groups that one call takes, each with the number of its first. Empty
    lines stay, for the count."""
    group: list[bytes] = []
    size = filled = 0
    first = 1
    with path.open("rb") as lines:
        for at, raw in enumerate(lines, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if at == 1 else raw
            if len(line) > _IMPORT_BYTES:
                raise InvalidArgument(f"{path}:{at}: longer than {_IMPORT_BYTES:,} bytes")
            if filled and (filled >= _IMPORT_LINES or size + len(line) > _IMPORT_BYTES):
                yield first, b"".join(group)
                group, size, filled = [], 0, 0
            first = first if group else at
            if line.strip():
                filled += 1
            elif not filled:
                continue  # before the first line of a group: nothing to count
            group.append(line if line.strip() else b"\n")
            size += len(group[-1])
    if filled:
        yield first, b"".join(group)
