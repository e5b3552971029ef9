"""plinth.client as the commands about preferences use it: one collection, files of many lines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

from plinth.client import Client, GatewayAddress
from plinth.shared.api.enums import number
from plinth.shared.errors import InvalidArgument, NotFound, PlinthError
from plinth.shared.preference_names import COLLECTIONS, REPORTS, TASKS
from plinth.v1 import preferences_pb2 as pb

_ADD_TASKS = 20
_IMPORT_LINES = 500
_IMPORT_BYTES = 2 << 20


Tasks = list[tuple[str, pb.CreatePreferenceTaskRequest]]


class PreferenceClient(Client):
    """One collection of tasks."""

    def __init__(self, address: GatewayAddress | str, key: str, collection: str) -> None:
        super().__init__(address, key)
        self._collection = collection
        self._name = COLLECTIONS.name(collection)

    def add(self, tasks: Tasks) -> int:
        """How many of the (place, task); those that are there already count too. What is wrong with
        one is told with its place."""
        for begin in range(0, len(tasks), _ADD_TASKS):
            part = tasks[begin : begin + _ADD_TASKS]
            try:
                self.preferences.batch_create_preference_tasks(
                    self._name, requests=[one for _, one in part]
                )
            except InvalidArgument as error:
                if (found := re.match(r"requests\.(\d+)(\.task\.spec)?", error.field)) is None:
                    raise
                message = error.message.replace(found[0], part[int(found[1])][0], 1)
                raise InvalidArgument(message, reason=error.reason, field=error.field) from error
        return len(tasks)

    def newest(self, limit: int) -> list[pb.PreferenceTask]:
        """Without texts."""
        return list(
            islice(self.preferences.list_preference_tasks(self._name, page_size=limit), limit)
        )

    def counts(self) -> pb.PreferenceCollectionStatus:
        """All 0 of a collection that never had a task."""
        try:
            return self.preferences.get_preference_collection(self._name).status
        except NotFound:
            return pb.PreferenceCollectionStatus()

    def lease(self, annotator: str, seconds: int, task_id: str = "") -> pb.PreferenceLease:
        """NotFound (NO_TASK) when there is none."""
        return self.preferences.lease_preference_task(
            self._name,
            annotator=annotator,
            task=self._task(task_id) if task_id else "",
            lease_duration=timedelta(seconds=seconds),
        )

    def _task(self, task_id: str) -> str:
        return TASKS.name(self._collection, task_id)

    def release(self, lease: pb.PreferenceLease, *, skip: bool) -> None:
        self.preferences.release_preference_lease(
            lease.task, annotator=lease.annotator, fence=lease.fence, skip=skip
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
        made = self.preferences.create_judgement(
            self._task(task_id), judgement=pb.Judgement(spec=spec), fence=fence
        )
        return made.revision

    def report(self) -> pb.PreferenceReport:
        return self.preferences.get_preference_report(REPORTS.name(self._collection))

    def export(self, shape: str) -> Iterator[bytes]:
        """Whole lines in the shape "trl" or "hh"."""
        said = pb.PairShape.ValueType(number(pb.PairShape, shape, "shape"))
        for chunk in self.preferences.export_pairs(self._name, shape=said):
            yield chunk.jsonl

    def import_file(
        self, path: Path, source: int, annotator: str, *, check_only: bool
    ) -> pb.ImportPairsResponse:
        """What became of all its lines, or with `check_only` what would, over all the calls that
        the file takes. InvalidArgument names the file and the line that is wrong."""
        total = pb.ImportPairsResponse()
        said: dict[tuple[str, str], str] = {}  # of a task by a judge: what would stand
        for first, part in _parts(path):
            try:
                answer = self.preferences.import_pairs(
                    self._name,
                    jsonl=part,
                    annotator=annotator,
                    source=pb.JudgementSource.ValueType(source),
                    first_line=first,
                    validate_only=check_only,
                )
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
