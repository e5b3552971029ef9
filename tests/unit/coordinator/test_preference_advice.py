"""What an error of preferences advises is done here, and helps."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from plinth.cli.preferences import read_tasks
from plinth.coordinator.preferences import membership
from plinth.coordinator.preferences.pairs import MAX_IMPORT_BYTES, read_lines
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.sampling import ResponseSampler, Served
from plinth.coordinator.preferences.specs import MAX_TEXT_BYTES, make_task
from plinth.coordinator.scoring import PromptAnswer
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb

HUMAN = pb.JUDGEMENT_SOURCE_HUMAN
LINE = '{"prompt": "p%d", "chosen": "café", "rejected": "b"}\n'


def task(task_id: str) -> rec.PreferenceTaskRecord:
    prompt = [chat_pb2.ChatMessage(role="user", content="?")]
    responses = [pb.PreferenceResponse(response_id=id, text=id) for id in ("a", "b")]
    spec = pb.PreferenceTaskSpec(prompt=prompt, responses=responses)
    return make_task(spec, "c", "task.spec", task_id=task_id)


# -- where there is no room ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["delete the tasks that nobody has judged", "delete its collection"]
)
@pytest.mark.parametrize("full", ["tasks", "bytes"])
async def test_a_full_collection(redis_client: Redis, full: str, how: str) -> None:
    first = PreferenceRecords(redis_client, "c")
    await first.create(task("unjudged"))
    if full == "tasks":
        records = PreferenceRecords(redis_client, "c", max_tasks=1)
    else:
        held = await cast(Any, redis_client.hget(first._keys.counters, "bytes"))
        records = PreferenceRecords(redis_client, "c", max_bytes=int(held) + 10)
    with pytest.raises(ResourceExhausted, match=how):
        await records.create(task("more"))
    if how.startswith("delete the tasks"):
        await records.remove("unjudged")
    else:
        grant = await records.lease("ann", lease_s=60, task_id="")
        assert grant is not None
        verdict = rec.JudgementRecord(
            task_id="unjudged", annotator="ann", source=HUMAN, ranking=tiers([["a"], ["b"]])
        )
        await records.submit(verdict, grant.fence)
        await records.delete()
    assert (await records.create(task("more"))).task_id == "more"


async def test_too_many_collections(redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_COLLECTIONS", 1)
    first, second = (PreferenceRecords(redis_client, name) for name in ("c", "d"))
    await first.create(task("t"))
    with pytest.raises(ResourceExhausted, match="use one of them, or delete one"):
        await second.create(task("t2"))
    await first.create(task("t2"))
    await first.delete()
    await second.create(task("t2"))


# -- lines --------------------------------------------------------------------------------------


def read(text: str | bytes, **request: Any) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    return len(read_lines(pb.ImportPairsRequest(jsonl=data, **request), "c"))


def test_lines_are_sent_in_several_calls_and_one_source_is_given_for_all() -> None:
    lines = [LINE % number + " " * (MAX_IMPORT_BYTES // 4) + "\n" for number in range(5)]
    with pytest.raises(InvalidArgument, match="send the lines in several calls"):
        read("".join(lines), source=HUMAN)
    assert (
        sum(read("".join(part), source=HUMAN) for part in (lines[:2], lines[2:4], lines[4:])) == 5
    )
    with pytest.raises(InvalidArgument, match="give the source for all lines"):
        read(LINE % 1)
    assert read(LINE % 1, source=HUMAN) == 1


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        (LINE % 1, lambda path: read(path.read_bytes(), source=HUMAN)),
        ('{"prompt": "café", "responses": ["a", "b"]}\n', lambda path: len(read_tasks(path))),
    ],
)
def test_lines_that_are_not_utf8_are_converted(
    text: str, reader: Callable[[Path], int], tmp_path: Path
) -> None:
    (tmp_path / "old").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument, match="not UTF-8") as caught:
        reader(tmp_path / "old")
    command = re.search(r"convert it, as Latin-1 by: (iconv .*? FILE > NEW)", caught.value.message)
    assert command is not None
    line = command[1].replace("FILE", "old").replace("NEW", "new")
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert reader(tmp_path / "new") == 1


# -- samples ------------------------------------------------------------------------------------


class Scripted:
    """A model by the settings that it is asked with."""

    def __init__(self, says: Callable[[sampling_pb2.SamplingParams], str]) -> None:
        self._says = says

    async def chat(self, messages: Any, sampling: Any, **_: Any) -> PromptAnswer:
        return answer(self._says(sampling))


def answer(text: str) -> PromptAnswer:
    return PromptAnswer("?", text, 1, 0.0, cut_off=False)


@pytest.mark.parametrize(
    ("says", "sampling", "advice", "better"),
    [
        (
            lambda s: f"{s.seed}" if s.temperature else "a",
            {"temperature": 0.0},
            r"4 the same as another response \(raise the temperature",
            {"temperature": 1.0},
        ),
        (
            lambda s: "ab"[: s.max_tokens],
            {"max_tokens": 1},
            r"4 the same as another response \(.*max_tokens",
            {"max_tokens": 2},
        ),
        (
            lambda s: f" {s.seed}"[: s.max_tokens],
            {"max_tokens": 1},
            r"4 empty \(raise the temperature, or max_tokens",
            {"max_tokens": 9},
        ),
        (
            lambda s: f"{s.seed}" if s.temperature else "",
            {"temperature": 0.0},
            r"4 empty \(raise the temperature",
            {"temperature": 1.0},
        ),
        (
            lambda s: "long" * s.max_tokens,
            {"max_tokens": MAX_TEXT_BYTES},
            r"4 too long \(lower max_tokens",
            {"max_tokens": 4},
        ),
    ],
)
async def test_a_model_that_has_nothing_new_to_say(
    says: Any, sampling: dict[str, Any], advice: str, better: dict[str, Any]
) -> None:
    sampler = ResponseSampler(cast(Any, None), cast(Any, None))
    served = Served(cast(Any, Scripted(says)), "m@1", "sha256:0", 64)

    async def add(**given: Any) -> None:
        spec = pb.SampleSpec(model="m", count=1, sampling=sampling_pb2.SamplingParams(**given))
        await sampler._add(task("t"), served, spec, 0, 0)

    with pytest.raises(FailedPrecondition, match=advice) as caught:
        await add(**sampling)
    assert caught.value.reason == "NOTHING_NEW"
    await add(**{**sampling, **better})
