"""Answers in OpenAI's shapes: whole, and as chunks of a stream.

Beside OpenAI's fields an answer carries `seed`, and a choice that was chosen among others `plinth`:
what it was chosen by; `system_fingerprint` is the digest of the weights.
With model, prompt and parameters these two are enough to make the answer again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from plinth.gateway.generation.answer_writer import STOP, TextEvent
from plinth.gateway.generation.chooser import Chosen
from plinth.gateway.generation.generator import Prepared
from plinth.gateway.generation.session import Session
from plinth.gateway.generation.tally import Tally
from plinth.gateway.generation.texts import Texts
from plinth.gateway.openai.answer_body import AnswerBody, EncodedList, encoded
from plinth.gateway.openai.logprobs import ChatLogprobs, CompletionLogprobs, Logprobs
from plinth.gateway.openai.request_body import Usage
from plinth.shared.answer_ids import CHAT, COMPLETION, answer_id
from plinth.shared.tasks import next_turn
from plinth.v1 import sampling_pb2

Json = dict[str, Any]
STEP_CHOICES = 32  # written in one turn of the loop, where there is no more to them than a text
# (number of the prompt, the prompt, all answers to it) → those that the client gets.
Choose = Callable[[int, Prepared, Sequence[Sequence[TextEvent]]], Awaitable[list[Chosen]]]


@dataclass
class Collected:
    """One choice of a whole answer, as far as it has come. lists: of its log-probs, as JSON: as
    objects they would be ten times as large. events: without alternatives, where it is to be chosen
    among others."""

    lists: list[EncodedList]
    texts: list[str] = field(default_factory=list)
    finish: int = 0
    events: list[TextEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


class Renderer:
    """One request's answers as JSON. `alternatives`: None for no log-probs."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    logprobs: ClassVar[type[Logprobs]]

    def __init__(self, session: Session, texts: Texts, alternatives: int | None) -> None:
        self._prepared = session.prepared
        self._logprobs: Logprobs | None = None
        if alternatives is not None:
            self._logprobs = self.logprobs(texts, self._prepared[0], alternatives)
        self._id = answer_id(self.prefix)
        self._created = int(time.time())
        self._tally = Tally(self._prepared)
        self._count = sum(one.samples for one in self._prepared)

    # -- what differs between chat and completions ---------------------------------------------

    def opening(self) -> Iterable[Json]:
        """Chunks before the first piece of text."""
        return ()

    async def choice(self, index: int, event: TextEvent) -> Json:
        """One entry of a chunk's `choices`."""
        raise NotImplementedError

    def whole_choice(self, index: int, collected: Collected) -> Json:
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

    async def whole(self, session: Session, choose: Choose | None = None) -> deque[bytes]:
        """The answer that is not streamed, as pieces of JSON: all samples of each prompt, or those
        of `choose`. `usage` counts what was made either way."""
        lists = range(len(self._logprobs.names) if self._logprobs is not None else 0)
        answers = [Collected([EncodedList() for _ in lists]) for _ in range(self._count)]
        async for index, event in session.events():
            self.count(event)
            await self._collect(answers[index], event, keep=choose is not None)
        body = AnswerBody()
        body.add(encoded(self._head(self.kind))[:-1] + b',"choices":[')
        choices = self._all(answers) if choose is None else self._chosen(answers, choose)
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

    async def _collect(self, into: Collected, event: TextEvent, *, keep: bool) -> None:
        if event.text:
            into.texts.append(event.text)
        into.finish = event.finish or into.finish
        if self._logprobs is not None:
            async for step in self._logprobs.steps(event.tokens, event.offsets):
                for one, values in zip(into.lists, step, strict=True):
                    one.extend(values)
        if keep:
            into.events.append(replace(event, tokens=tuple(map(_alone, event.tokens))))

    async def _all(self, answers: Sequence[Collected]) -> AsyncGenerator[Json, None]:
        for index, collected in enumerate(answers):
            yield self.whole_choice(index, collected)

    async def _chosen(
        self, answers: Sequence[Collected], choose: Choose
    ) -> AsyncGenerator[Json, None]:
        first = made = 0
        for number, one in enumerate(self._prepared):
            mine = answers[first : first + one.samples]
            for chosen in await choose(number, one, [collected.events for collected in mine]):
                choice = self.whole_choice(made, mine[chosen.sample])
                choice["plinth"] = {"sample": chosen.sample, **chosen.note}
                yield choice
                made += 1
            first += one.samples

    def count(self, event: TextEvent) -> None:
        """Takes note of what a piece of an answer cost."""
        self._tally.count(event)

    def usage(self) -> Json:
        """Of what was counted so far."""
        usage = self._tally.usage()
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
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

    async def _chunk_logprobs(self, event: TextEvent) -> Json | None:
        """As a chunk of a stream has them."""
        if self._logprobs is None:
            return None
        lists: list[list[Any]] = [[] for _ in self._logprobs.names]
        async for step in self._logprobs.steps(event.tokens, event.offsets):
            for one, values in zip(lists, step, strict=True):
                one.extend(values)
        return self._logprobs.whole(lists)

    def _whole_logprobs(self, collected: Collected) -> Json | None:
        return None if self._logprobs is None else self._logprobs.whole(collected.lists)


class ChatRenderer(Renderer):
    """/v1/chat/completions."""

    prefix, kind, chunk_kind = CHAT, "chat.completion", "chat.completion.chunk"
    logprobs = ChatLogprobs

    def opening(self) -> Iterable[Json]:
        for index in range(self._count):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    async def choice(self, index: int, event: TextEvent) -> Json:
        return {
            "index": index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": await self._chunk_logprobs(event),
            "finish_reason": finish_word(event.finish),
        }

    def whole_choice(self, index: int, collected: Collected) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": collected.text, "refusal": None},
            "logprobs": self._whole_logprobs(collected),
            "finish_reason": finish_word(collected.finish),
        }


class CompletionRenderer(Renderer):
    """/v1/completions."""

    prefix, kind, chunk_kind = COMPLETION, "text_completion", "text_completion"
    logprobs = CompletionLogprobs

    async def choice(self, index: int, event: TextEvent) -> Json:
        return {
            "index": index,
            "text": event.text,
            "logprobs": await self._chunk_logprobs(event),
            "finish_reason": finish_word(event.finish),
        }

    def whole_choice(self, index: int, collected: Collected) -> Json:
        return {
            "index": index,
            "text": collected.text,
            "logprobs": self._whole_logprobs(collected),
            "finish_reason": finish_word(collected.finish),
        }


def finish_word(finish: int) -> str | None:
    """OpenAI's word for a FinishReason."""
    if not finish:
        return None
    return "stop" if finish == STOP else "length"


def _alone(token: sampling_pb2.Token) -> sampling_pb2.Token:
    """`token` without its alternatives."""
    return sampling_pb2.Token(id=token.id, logprob=token.logprob, raw_logprob=token.raw_logprob)
