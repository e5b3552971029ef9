"""Answers in OpenAI's shapes: whole, and as chunks of a stream.

Beside OpenAI's fields an answer carries `seed`, and a choice that was chosen among others `plinth`:
what it was chosen by; `system_fingerprint` is the digest of the weights.
With model, prompt and parameters these two are enough to make the answer again.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from plinth.gateway.answer_body import AnswerBody, EncodedList, encoded
from plinth.gateway.answer_scores import LOWEST_LOGPROB
from plinth.gateway.answer_writer import STOP, TextEvent
from plinth.gateway.chooser import Chosen
from plinth.gateway.generation import Prepared
from plinth.gateway.request_body import Usage
from plinth.gateway.session import Session
from plinth.gateway.texts import Texts
from plinth.shared.tasks import next_turn
from plinth.v1 import common_pb2

Json = dict[str, Any]
STEP_TOKENS = 32  # with their alternatives, rendered in one turn of the loop
STEP_CHOICES = 32  # the same, where there is no more to them than a text
# (number of the prompt, the prompt, all answers to it) → those that the client gets.
Choose = Callable[[int, Prepared, Sequence[Sequence[TextEvent]]], Awaitable[list[Chosen]]]


class Renderer:
    """One request's answers as JSON. `alternatives`: None for no log-probs."""

    prefix = ""
    kind = ""
    chunk_kind = ""

    def __init__(self, session: Session, texts: Texts, alternatives: int | None) -> None:
        self._prepared = session.prepared
        self._texts = texts
        self._alternatives = alternatives
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._made = self._cached = 0  # tokens
        self._count = sum(one.samples for one in self._prepared)

    # -- what differs between chat and completions ---------------------------------------------

    def opening(self) -> Iterable[Json]:
        """Chunks before the first piece of text."""
        return ()

    async def choice(self, index: int, event: TextEvent) -> Json:
        """One entry of a chunk's `choices`."""
        raise NotImplementedError

    async def whole_choice(self, index: int, events: Sequence[TextEvent]) -> Json:
        """One entry of a whole answer's `choices`."""
        raise NotImplementedError

    # -- what is the same ----------------------------------------------------------------------

    def chunk(self, choices: list[Json], usage: Usage = "none") -> Json:
        """A chunk of a stream, in which usage is null where the last one alone has it."""
        body = self._head(self.chunk_kind)
        body["choices"] = choices
        if usage != "none":
            body["usage"] = self.usage() if usage == "each" else None
        return body

    def usage_chunk(self) -> Json:
        """The last chunk of a stream that was asked for usage."""
        return {**self.chunk([]), "usage": self.usage()}

    async def whole(self, session: Session, choose: Choose | None = None) -> list[bytes]:
        """The answer that is not streamed, as pieces of JSON: all samples of each prompt, or those
        of `choose`. `usage` counts what was made either way."""
        events: list[list[TextEvent]] = [[] for _ in range(self._count)]
        async for index, event in session.events():
            events[index].append(event)
            self.count(event)
        body = AnswerBody()
        body.add(encoded(self._head(self.kind))[:-1] + b',"choices":[')
        choices = self._all(events) if choose is None else self._chosen(events, choose)
        number = 0
        async with aclosing(choices):
            async for choice in choices:
                if number:
                    body.add(b",")
                body.add_value(choice)
                number += 1
                if not number % STEP_CHOICES:
                    await next_turn()
        body.add(b'],"usage":' + encoded(self.usage()) + b"}")
        body.end()
        return body.pieces

    async def _all(self, events: Sequence[list[TextEvent]]) -> AsyncGenerator[Json, None]:
        for index, parts in enumerate(events):
            yield await self.whole_choice(index, parts)
            parts.clear()  # its JSON takes its place

    async def _chosen(
        self, events: Sequence[Sequence[TextEvent]], choose: Choose
    ) -> AsyncGenerator[Json, None]:
        first = made = 0
        for number, one in enumerate(self._prepared):
            answers = events[first : first + one.samples]
            for chosen in await choose(number, one, answers):
                choice = await self.whole_choice(first + chosen.sample, answers[chosen.sample])
                choice["index"] = made
                choice["plinth"] = {"sample": chosen.sample, **chosen.note}
                yield choice
                made += 1
            first += one.samples

    def count(self, event: TextEvent) -> None:
        """Takes note of what a piece of an answer cost."""
        self._made += len(event.tokens)
        if event.usage is not None:
            self._cached += event.usage.cached_tokens

    def usage(self) -> Json:
        """Of what was counted so far. Prompts count once, however many samples were made of them;
        what they had in a cache is known when their answers end."""
        prompt = sum(len(one.prompt_ids) for one in self._prepared)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._made,
            "total_tokens": prompt + self._made,
            "prompt_tokens_details": {"cached_tokens": min(self._cached, prompt)},
        }

    def _head(self, kind: str) -> Json:
        first = self._prepared[0]
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": first.model.name,
            "system_fingerprint": first.model.weights_digest,
            "seed": first.sampling.seed,
        }

    async def _token_bytes(self, tokens: Sequence[common_pb2.Token]) -> dict[int, bytes]:
        ids = [token.id for token in tokens]
        ids += [top.id for token in tokens for top in token.top]
        first = self._prepared[0]
        return await self._texts.token_bytes(first.principal, first.model.artifact, ids)


class ChatRenderer(Renderer):
    """/v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Iterable[Json]:
        for index in range(self._count):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    async def choice(self, index: int, event: TextEvent) -> Json:
        return {
            "index": index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": await self._logprobs(event.tokens),
            "finish_reason": finish_word(event.finish),
        }

    async def whole_choice(self, index: int, events: Sequence[TextEvent]) -> Json:
        text = "".join(event.text for event in events)
        tokens = [token for event in events for token in event.tokens]
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": await self._whole_logprobs(tokens),
            "finish_reason": finish_word(events[-1].finish),
        }

    async def _logprobs(self, tokens: Sequence[common_pb2.Token]) -> Json | None:
        """As a chunk of a stream has them."""
        if self._alternatives is None or not tokens:
            return None
        content: list[Json] = []
        async for entries in self._entries(tokens):
            content += entries
        return {"content": content, "refusal": None}

    async def _whole_logprobs(self, tokens: Sequence[common_pb2.Token]) -> Json | None:
        if self._alternatives is None or not tokens:
            return None
        content = EncodedList()
        async for entries in self._entries(tokens):
            content.extend(entries)
        return {"content": content, "refusal": None}

    async def _entries(
        self, tokens: Sequence[common_pb2.Token]
    ) -> AsyncGenerator[list[Json], None]:
        for step in _steps(tokens):
            raw = await self._token_bytes(step)
            yield [
                {
                    **_entry(raw[token.id], token.raw_logprob),
                    "top_logprobs": [
                        _entry(raw[top.id], top.logprob) for top in token.top[: self._alternatives]
                    ],
                }
                for token in step
            ]
            await next_turn()


class CompletionRenderer(Renderer):
    """/v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    async def choice(self, index: int, event: TextEvent) -> Json:
        return {
            "index": index,
            "text": event.text,
            "logprobs": await self._logprobs(event.tokens, event.offsets),
            "finish_reason": finish_word(event.finish),
        }

    async def whole_choice(self, index: int, events: Sequence[TextEvent]) -> Json:
        text = "".join(event.text for event in events)
        tokens = [token for event in events for token in event.tokens]
        offsets = [offset for event in events for offset in event.offsets]
        return {
            "index": index,
            "text": text,
            "logprobs": await self._whole_logprobs(tokens, offsets),
            "finish_reason": finish_word(events[-1].finish),
        }

    async def _logprobs(
        self, tokens: Sequence[common_pb2.Token], offsets: Sequence[int]
    ) -> Json | None:
        """As a chunk of a stream has them."""
        if self._alternatives is None:
            return None
        columns: list[list[Any]] = [[], [], []]
        async for step in self._columns(tokens):
            for column, values in zip(columns, step, strict=True):
                column.extend(values)
        return dict(zip(_COLUMNS, [*columns, list(offsets)], strict=True))

    async def _whole_logprobs(
        self, tokens: Sequence[common_pb2.Token], offsets: Sequence[int]
    ) -> Json | None:
        if self._alternatives is None:
            return None
        columns = [EncodedList(), EncodedList(), EncodedList()]
        async for step in self._columns(tokens):
            for column, values in zip(columns, step, strict=True):
                column.extend(values)
        return dict(zip(_COLUMNS, [*columns, list(offsets)], strict=True))

    async def _columns(
        self, tokens: Sequence[common_pb2.Token]
    ) -> AsyncGenerator[tuple[list[Any], list[Any], list[Any]], None]:
        for step in _steps(tokens):
            raw = await self._token_bytes(step)
            texts = {id_: token_text(one) for id_, one in raw.items()}
            yield (
                [texts[token.id] for token in step],
                [_finite(token.raw_logprob) for token in step],
                [_by_text(token.top[: self._alternatives], texts, token.id) for token in step],
            )
            await next_turn()


_COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def _steps(tokens: Sequence[common_pb2.Token]) -> Iterable[Sequence[common_pb2.Token]]:
    return (tokens[at : at + STEP_TOKENS] for at in range(0, len(tokens), STEP_TOKENS))


def finish_word(finish: int) -> str | None:
    """OpenAI's word for a FinishReason."""
    if not finish:
        return None
    return "stop" if finish == STOP else "length"


def _entry(raw: bytes, logprob: float) -> Json:
    return {"token": token_text(raw), "logprob": _finite(logprob), "bytes": list(raw)}


def token_text(raw: bytes) -> str:
    """A token by itself. One that ends inside a character is no text; as at OpenAI it is then
    `bytes:` with its bytes, those that are ASCII and printable as themselves."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        shown = (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw)
        return "bytes:" + "".join(shown)


def _by_text(
    tops: Sequence[common_pb2.TopLogprob], texts: Mapping[int, str], sampled: int
) -> dict[str, float]:
    """Alternatives by what they say. Where two say the same, the sampled one has the name (or else
    the likelier), and the other is told by its id."""
    named: dict[str, float] = {}
    owner = {texts[top.id]: top.id for top in reversed(tops)}
    owner |= {texts[top.id]: top.id for top in tops if top.id == sampled}
    for top in tops:
        text = texts[top.id]
        name = text if owner[text] == top.id else f"token_id:{top.id}"
        named[name] = _finite(top.logprob)
    return named


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
