"""The gateway's small parts, each alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from patience import PATIENCE_S
from plinth.gateway import limits, metrics
from plinth.gateway.generation.answer_scores import LOWEST_LOGPROB
from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.catalogue import Catalogue, ServedModel, served
from plinth.gateway.generation.generator import merged
from plinth.gateway.openai import sse
from plinth.gateway.openai.logprobs import finite
from plinth.gateway.openai.rendering import finish_word
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.registry import Replica
from plinth.v1 import sampling_pb2


def replica(id: str, model: str, artifact: str, digest: str) -> Replica:
    held = {
        "model": model,
        "artifact": artifact,
        "weights_digest": digest,
        "context_length": 64,
    }
    return Replica("inference", id, "127.0.0.1:1", {"bindings": json.dumps([held])})


class Listed:
    """A registry that knows these replicas."""

    def __init__(self, *replicas: Replica) -> None:
        self.listed = list(replicas)

    async def replicas(self, stage: str) -> list[Replica]:
        assert stage == "inference"
        return self.listed


def test_one_entry_per_name_with_its_shards() -> None:
    models = served(
        [
            replica("a", "chat", "chat@1", "x"),
            replica("b", "chat", "chat@2", "y"),
            replica("c", "chat", "chat@2", "y"),
            replica("d", "base", "base@1", "z"),
        ]
    )
    assert models == [
        ServedModel("base", "base@1", "z", 64, 1),
        ServedModel("chat", "chat@2", "y", 64, 2),
    ]


async def test_a_model_whose_shard_just_went_is_still_known_but_not_listed() -> None:
    registry = Listed(replica("a", "chat", "chat@1", "x"))
    catalogue = Catalogue(registry)  # type: ignore[arg-type]
    assert (await catalogue.get("chat")).ready_shards == 1
    registry.listed = []
    assert (await catalogue.get("chat")).ready_shards == 0
    assert await catalogue.models() == []
    with pytest.raises(NotFound) as caught:
        await catalogue.get("other")
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_a_revision_is_replaced_once_only_others_of_its_name_are_held() -> None:
    old, new = replica("a", "chat", "chat@1", "x"), replica("b", "chat", "chat@2", "y")
    registry = Listed(old, new)
    catalogue = Catalogue(registry)  # type: ignore[arg-type]
    first = ServedModel("chat", "chat@1", "x", 64)
    assert not await catalogue.replaced(first)
    registry.listed = [replica("a", "chat.canary", "chat@1", "x"), new]
    assert not await catalogue.replaced(first)
    registry.listed = []  # its shard is being restarted, for all that one knows
    assert not await catalogue.replaced(first)
    registry.listed = [replica("c", "other", "other@1", "z")]
    assert not await catalogue.replaced(first)
    registry.listed = [new]
    assert await catalogue.replaced(first)


async def test_of_revisions_held_equally_the_newest_answers() -> None:
    registry = Listed(replica("a", "chat", "chat@9", "x"), replica("b", "chat", "chat@10", "a"))
    catalogue = Catalogue(registry)  # type: ignore[arg-type]
    assert (await catalogue.get("chat")).artifact == "chat@10"


def test_tenants_beyond_the_first_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_tenants", set())
    labels = {metrics.tenant_label(f"tenant-{number}") for number in range(200)}
    assert len(labels) <= metrics.MAX_TENANTS + 1
    assert "other" in labels


def test_an_event_is_one_line_however_a_reader_splits_lines() -> None:
    text = "a\u2028b\u2029c\u0085d\ne\rf 漢"
    event = sse.data({"t": text}).decode()
    assert event.endswith("\n\n")
    assert len(event[:-2].splitlines()) == 1
    assert json.loads(event[6:]) == {"t": text}
    assert "漢" in event


def test_logprobs_are_json_numbers() -> None:
    assert finite(float("-inf")) == LOWEST_LOGPROB
    assert finish_word(sampling_pb2.FINISH_REASON_STOP) == "stop"
    assert finish_word(sampling_pb2.FINISH_REASON_LENGTH) == "length"
    assert finish_word(sampling_pb2.FINISH_REASON_UNSPECIFIED) is None


@pytest.mark.parametrize("text", ["\x00", "\ud800", "\udfff"])
def test_nul_and_surrogates_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        limits.check_text(f"a{text}", "prompt")


def test_white_space_an_ansi_colour_and_the_rest_of_unicode_are_not() -> None:
    limits.check_text(
        "\t\n\v\f\r\x85\xa0 é漢🙂\u200d\ufeff \x1b[31mred\x1b[0m\x07\x7f\x9b", "prompt"
    )


@pytest.mark.parametrize(
    ("prompt", "asked", "context", "given"), [(10, None, 64, 54), (10, 5, 64, 5), (60, 50, 64, 4)]
)
def test_room_for_an_answer(prompt: int, asked: int | None, context: int, given: int) -> None:
    assert limits.room(prompt, asked, context, "prompt") == given


@pytest.mark.parametrize("prompt", [0, 64, 65])
def test_no_room_for_an_answer(prompt: int) -> None:
    with pytest.raises(InvalidArgument):
        limits.room(prompt, 1, 64, "prompt")


def test_sampling_that_is_not_a_number() -> None:
    with pytest.raises(InvalidArgument) as caught:
        limits.check_sampling(sampling_pb2.SamplingParams(top_p=float("nan")), "sampling.")
    assert caught.value.field == "sampling.top_p"


def test_a_request_that_shards_died_under_falls_back_on_no_other_revision() -> None:
    from plinth.gateway.generation.retry_budget import SHARDS_DIED
    from plinth.gateway.generation.revisions import falls_back
    from plinth.shared.errors import Internal, InvalidArgument

    assert not falls_back(Internal("two shards died", reason=SHARDS_DIED))
    assert falls_back(Internal("a fault"))
    assert falls_back(InvalidArgument("too long"))


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_answers_end_with_their_request_though_a_cancellation_gets_lost(lost: int) -> None:
    """As `asyncio.wait_for` may lose it, under whatever the answers wait for (cpython#86296)."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer() -> AsyncIterator[TextEvent]:
        yield TextEvent("a")
        try:
            for _ in range(lost):
                began.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    events = merged([answer()])
    assert (await anext(events))[1].text == "a"
    await began.wait()
    await events.aclose()
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
