"""Imports of pairs: cut off anywhere and repeated, they end as one that was not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.cli import preference_client
from plinth.cli.preference_client import _parts
from plinth.coordinator.preferences import importing
from plinth.coordinator.preferences.pairs import judged_pairs, read_lines
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.report import snapshot
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import InvalidArgument, ResourceExhausted
from plinth.v1 import preferences_pb2 as pb

RULE = pb.JUDGEMENT_SOURCE_RULE


def line(number: int, *, reverse: bool = False, **fields: Any) -> str:
    better, worse = (f"no {number}", f"yes {number}")[:: -1 if not reverse else 1]
    row = {"prompt": f"Question {number}?", "chosen": better, "rejected": worse, **fields}
    return json.dumps(row)


async def imported(
    redis: Redis, lines: list[str], *, check_only: bool = False, collection: str = "c"
) -> pb.ImportPairsResponse:
    ask = pb.ImportPairsRequest(
        jsonl="\n".join(lines).encode(), source=RULE, annotator="length", first_line=11
    )
    records = PreferenceRecords(redis, collection)
    return await importing.import_lines(records, read_lines(ask, "c"), check_only=check_only)


async def there(redis: Redis, collection: str = "c") -> list[tuple[str, str, str]]:
    seen = await snapshot(PreferenceRecords(redis, collection))
    pairs = judged_pairs(seen, pb.PairSelection())
    return sorted((pair.prompt[0][1], pair.chosen, pair.rejected) for pair in pairs)


async def test_a_contradiction_is_told_with_its_line_and_ends_nothing(redis_client: Redis) -> None:
    lines = [line(1), "", line(2), line(1, reverse=True), line(3), line(2, reason="because")]
    for new, known in ((3, 1), (0, 4), (0, 4)):
        answer = await imported(redis_client, lines)
        assert (answer.imported_count, answer.known_count) == (new, known)
        (told,) = answer.contradictions
        assert (told.line, told.annotator) == (14, "length")
        assert len(await there(redis_client)) == 3
    assert ("Question 1?", "yes 1", "no 1") in await there(redis_client)


async def test_looking_writes_nothing_and_says_what_would_become_of_it(
    redis_client: Redis,
) -> None:
    await imported(redis_client, [line(1)])
    lines = [line(1), line(2), line(2, reverse=True), line(1, reverse=True)]
    looked = await imported(redis_client, lines, check_only=True)
    assert len(await there(redis_client)) == 1
    del looked.lines[:]
    assert looked == await imported(redis_client, lines)
    assert [one.line for one in looked.contradictions] == [13, 14]


@pytest.mark.parametrize("survived", range(0, 9, 2))
async def test_cut_off_anywhere_and_repeated(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    lines = [line(number) for number in range(4)]
    lines.append(line(1, reverse=True))
    calls = 0

    def breaking(name: str) -> Callable[..., Any]:
        real = getattr(PreferenceRecords, name)

        async def call(self: PreferenceRecords, *given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == survived + 1:
                raise ResourceExhausted("no room", reason="TOO_MANY_TASKS")
            return await real(self, *given)

        return call

    with monkeypatch.context() as patch:
        for name in ("ensure", "add"):
            patch.setattr(PreferenceRecords, name, breaking(name))
        if survived < 8:
            with pytest.raises(ResourceExhausted, match=f"^line {11 + survived // 2}: no room"):
                await imported(redis_client, lines)
        else:
            await imported(redis_client, lines)
    assert len(await there(redis_client)) == survived // 2
    again = await imported(redis_client, lines)
    assert again.known_count == survived // 2
    assert again.imported_count + again.known_count == 4
    await imported(redis_client, lines, collection="whole")
    assert await there(redis_client) == await there(redis_client, "whole")


async def test_a_judge_that_skipped_or_judged_by_hand_is_no_other(redis_client: Redis) -> None:
    """What `add` finds of one judge need not have come by `add`."""
    records = PreferenceRecords(redis_client, "c")
    ask = pb.ImportPairsRequest(
        jsonl=line(1).encode(), source=pb.JUDGEMENT_SOURCE_HUMAN, annotator="ann"
    )
    ((_, task, judgement),) = read_lines(ask, "c")
    task.wanted = 1
    await records.create(task)
    grant = await records.lease("ann", lease_s=60)
    assert grant is not None
    await records.submit(judgement, grant.fence)
    answer = await importing.import_lines(records, [(1, task, judgement)], check_only=False)
    assert (answer.imported_count, answer.known_count) == (0, 1)
    assert (await records.add(judgement))[1] == 1

    skipped = PreferenceRecords(redis_client, "d")
    await skipped.create(task)
    grant = await skipped.lease("ann", lease_s=60)
    assert grant is not None
    await skipped.release(task.task_id, "ann", grant.fence, skip=True)
    answer = await importing.import_lines(skipped, [(1, task, judgement)], check_only=False)
    assert (answer.imported_count, answer.known_count) == (1, 0)


# -- a file in parts -------------------------------------------------------------------------------


def lines_of(parts: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, rec.PreferenceTaskRecord]]:
    for first, part in parts:
        ask = pb.ImportPairsRequest(jsonl=part, source=RULE, first_line=first)
        for number, task, _ in read_lines(ask, "c"):
            yield number, task


@pytest.mark.parametrize("seed", range(5))
async def test_a_file_is_looked_at_as_a_whole(
    redis_client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """However many calls it takes, the look says what the import will do, and that with which
    lines."""
    monkeypatch.setattr(preference_client, "_IMPORT_LINES", 3)
    chance = Random(seed)
    rows = [line(chance.randrange(6), reverse=chance.random() < 0.4) for _ in range(20)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(rows))
    loop = asyncio.get_running_loop()
    records = PreferenceRecords(redis_client, "c")
    await imported(redis_client, [line(0), line(1, reverse=True)])  # said before

    class Records:
        """ImportPairs without the network between."""

        def import_pairs(self, parent: str, **fields: Any) -> pb.ImportPairsResponse:
            ask = pb.ImportPairsRequest(parent=parent, **fields)
            lines = read_lines(ask, "c")
            act = importing.import_lines(records, lines, check_only=ask.validate_only)
            return asyncio.run_coroutine_threadsafe(act, loop).result(PATIENCE_S)

    with preference_client.PreferenceClient("127.0.0.1:1", "key", "c") as client:
        vars(client)["preferences"] = Records()
        act = partial(client.import_file, path, RULE, "length")
        looked = await asyncio.to_thread(act, check_only=True)
        done = await asyncio.to_thread(act, check_only=False)
    assert looked == done
    assert done.contradictions and done.imported_count and done.known_count


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_have_the_numbers_of_their_file(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [b"" if n % 7 in (0, 3) or n < 3 else line(n).encode() for n in range(1800)]
    path.write_bytes(mark + end.join(rows) + end)
    found = list(lines_of(_parts(path)))
    assert [(number, task.prompt[0].content) for number, task in found] == [
        (n + 1, f"Question {n}?") for n, row in enumerate(rows) if row
    ]


@pytest.mark.parametrize("wrong", [b"{", b"\xff\xfe", b"[]", b'{"prompt": "p"}'])
@pytest.mark.parametrize("at", [1, 2, 501, 502, 1203])
def test_a_wrong_line_is_named_wherever_it_is(tmp_path: Path, wrong: bytes, at: int) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [line(n).encode() for n in range(1, 1300)]
    rows[at - 1] = wrong
    path.write_bytes(b"\n".join(rows))
    with pytest.raises(InvalidArgument, match=f"^line {at}: "):
        list(lines_of(_parts(path)))
