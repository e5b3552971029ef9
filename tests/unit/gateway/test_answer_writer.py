"""Answers are the same however the shard's messages were cut; and what they are made of."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.gateway.generation.answer_writer import AnswerWriter, TextEvent
from plinth.gateway.generation.texts import Texts, TextStream
from plinth.internal.v1 import inference_pb2, tokenizer_pb2
from plinth.shared.errors import Unavailable
from plinth.shared.identity import Principal
from plinth.tokenizer.detokenizer import Detokenizer, TokenTable
from plinth.v1 import sampling_pb2

# A byte-level vocabulary in which characters span tokens and tokens span characters.
WORDS = [b"a", b"b", b"ST", b"O", b"P", b" a\xf0", b"\x9f", b"\x8e", b"\x89", b"\xf0\x9f", b"\xc3"]
WORDS += [b"\xa9b", b"\xff", "é🎉S".encode(), b"TOP"]
TABLE = TokenTable(dict(enumerate(WORDS)), None, False, len(WORDS))
STOPS = ("STOP", "P a", "bb", "🎉", "Ob")
ME = Principal("t", "k", frozenset({"inference"}))


class Call:
    """A stream at a tokenizer that dies after so many messages."""

    def __init__(self, life: int) -> None:
        self._stream, self._life = Detokenizer(TABLE, ()), life
        self._asked: Any = None

    async def write(self, message: Any) -> None:
        self._asked = message

    async def read(self) -> Any:
        self._life -= 1
        if self._life < 0:
            raise Unavailable("the tokenizer died")
        text, starts, ends = self._stream.add_located(self._asked.ids)
        text += self._stream.flush() if self._asked.flush else ""
        return tokenizer_pb2.DecodeStreamResponse(text=text, starts=starts, ends=ends)

    def cancel(self) -> None:
        pass


class Tokenizers:
    """Texts, and its stub, in one: each tokenizer lives for `life` messages."""

    resume_s = 1.0

    def __init__(self, life: int) -> None:
        self._life = life

    def DecodeStream(self) -> Call:
        return Call(self._life)

    async def with_retries(
        self, _who: Principal, work: Callable[[Any], Awaitable[Any]], _s: float
    ) -> Any:
        return await work(self)


def messages(ids: Sequence[int], cuts: Sequence[int], finish: int) -> list[Any]:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    made = [
        inference_pb2.GenerateResponse(tokens=[sampling_pb2.Token(id=id_) for id_ in ids[a:b]])
        for a, b in itertools.pairwise(edges)
    ]
    last = made[-1] if made and len(cuts) % 2 else inference_pb2.GenerateResponse()
    if not made or last is not made[-1]:
        made.append(last)
    made[0].usage.cached_tokens = 16
    last.finish_reason = finish
    last.usage.cached_tokens, last.usage.draft_proposed = 16, 9
    return made


async def written(
    ids: Sequence[int], stops: Sequence[str], cuts: Sequence[int], life: int, finish: int
) -> tuple[Any, ...]:
    tokenizers: Any = Tokenizers(life)
    stream = TextStream(tokenizers, ME, "m")
    writer = AnswerWriter(stream, stops, model="m", prompt_tokens=20, started=0.0)
    events: list[TextEvent] = []
    waiting: list[Any] = []
    for number, message in enumerate(messages(ids, cuts, finish)):
        waiting.append(message)
        if number % 3 == 1 and not message.finish_reason:
            continue  # comes together with the next
        event = await writer.write(waiting)
        waiting = []
        if event is not None:
            events.append(event)
        if writer.finished:
            break
    text = "".join(event.text for event in events)
    tokens = [token.id for event in events for token in event.tokens]
    offsets = [offset for event in events for offset in event.offsets]
    usage = events[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(tokens) == len(offsets)
    return text, tokens, offsets, events[-1].finish, usage.SerializeToString(deterministic=True)


IDS = st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=24)
CUTS = st.lists(st.integers(0, 40), max_size=8)


@settings(max_examples=300)
@given(IDS, st.lists(st.sampled_from(STOPS), max_size=3), CUTS, CUTS, st.integers(1, 9))
def test_the_same_tokens_make_the_same_answer_however_they_come(
    ids: list[int], stops: list[str], cuts: list[int], others: list[int], life: int
) -> None:
    """Whatever the messages and the batches are, and whenever tokenizers die."""
    length = sampling_pb2.FINISH_REASON_LENGTH
    one = asyncio.run(written(ids, stops, cuts, 99, length))
    assert asyncio.run(written(ids, stops, others, life, length)) == one
    text, tokens, offsets, finish, _ = one
    whole = Detokenizer(TABLE, ())
    said = whole.add(ids) + whole.flush()
    starts = [at for stop in stops if (at := said.find(stop)) >= 0]
    assert text == said[: min(starts, default=len(said))]
    assert tokens == ids[: len(tokens)]
    assert offsets == sorted(offsets)
    assert all(offset <= len(text) for offset in offsets)
    if not starts:
        assert (finish, tokens) == (length, ids)
        return
    assert finish == sampling_pb2.FINISH_REASON_STOP
    if len({*stops}) == 1:  # the last token is the one that completes it, and not one more
        until = [Detokenizer(TABLE, ()).add(ids[:n]) for n in range(len(ids) + 1)]
        assert len(tokens) == next(n for n, part in enumerate(until) if stops[0] in part)


def test_each_token_starts_where_its_text_does() -> None:
    """Against each token's own text, where tokens are whole characters."""
    text, _, offsets, _, _ = asyncio.run(
        written([0, 13, 6, 14, 9, 7, 8, 0], (), [], 99, sampling_pb2.FINISH_REASON_LENGTH)
    )
    assert text == "aé🎉S\ufffdTOP🎉a"
    assert offsets == [0, 1, 4, 5, 8, 8, 8, 9]


class Away(Texts):
    """Texts whose tokenizer lets others in before it answers."""

    def __init__(self) -> None:
        super().__init__(None, 1.0, 1.0)  # type: ignore[arg-type]
        self.meanwhile: Callable[[], None] = lambda: None

    async def _ask(self, _who: Principal, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await work(self)

    async def Decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        self.meanwhile()
        await asyncio.sleep(0)
        raw = [bytes([one.ids[0] % 256]) for one in request.sequences]
        return tokenizer_pb2.DecodeResponse(raw=raw)


async def test_what_another_call_pushes_out_of_the_cache_is_still_told() -> None:
    texts = Away()
    await texts.token_bytes(ME, "m", [1, 2])
    texts.meanwhile = texts._token_bytes.clear
    assert await texts.token_bytes(ME, "m", [1, 2, 3]) == {1: b"\1", 2: b"\2", 3: b"\3"}
    many = range(70_000)
    assert len(await texts.token_bytes(ME, "m", many)) == len(many)


FALLBACK = {id_: bytes([byte]) for id_, byte in enumerate([0xF0, 0x9F, 0x8E, 0x89, 0xC3, 0x41])}
SPOKEN = {6: b" a", 7: "é".encode(), 8: b" "}
SENTENCEPIECE = TokenTable(SPOKEN, FALLBACK, True, 9)


@given(st.lists(st.integers(0, 8), max_size=16))
def test_where_tokens_are_says_nothing_else_with_byte_fallback(ids: list[int]) -> None:
    """The text is `add`'s, and a token that is whole text stands where it is said to."""
    stream = Detokenizer(SENTENCEPIECE, ())
    text, starts, ends = stream.add_located(ids)
    assert text == Detokenizer(SENTENCEPIECE, ()).add(ids)
    assert ends == sorted(ends)
    assert not ids or ends[-1] == len(text)
    for id_, start, end in zip(ids, starts, ends, strict=True):
        if id_ in SPOKEN and start > 0:
            assert text[start:end] == SPOKEN[id_].decode()
