"""Text to ids and back, by the tokenizer stage.

Incremental detokenising is one bidirectional stream per answer: the gateway writes the ids that
came and reads the text that they complete. If the tokenizer dies in mid-answer, another one gets
all ids again, and the text that it has passed on already is left out.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from plinth.gateway.generation.retries import with_retries
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.errors import Internal, PlinthError, Unavailable
from plinth.shared.identity import Principal
from plinth.shared.rpc.client import StageClients
from plinth.v1 import chat_pb2

STAGE = "tokenizer"
KEPT_TOKENS = 65_536
ASKED_TOKENS = 2048  # in one call; the tokenizer takes 4096 sequences

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """A prompt. ids: none where there are more than were to be sent; count: how many there are.
    stop_ids: what ends a turn, where its text has turns."""

    ids: Sequence[int]
    count: int
    stop_ids: tuple[int, ...] = ()


class Texts:
    """The tokenizer stage as the gateway uses it. `model` is an artifact reference."""

    def __init__(self, clients: StageClients, patience_s: float, resume_s: float) -> None:
        """How long to wait for a tokenizer: for a prompt, and for an answer that has begun."""
        self._clients = clients
        self.patience_s = patience_s
        self.resume_s = resume_s
        self._token_bytes: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    async def chat(
        self,
        principal: Principal,
        model: str,
        messages: Sequence[chat_pb2.ChatMessage],
        *,
        max_ids: int,
    ) -> Encoded:
        """The conversation with the assistant's turn opened; of more than `max_ids`, their number
        alone."""
        request = tokenizer_pb2.ApplyChatTemplateRequest(
            model=model,
            messages=messages,
            add_generation_prompt=True,
            max_ids=max_ids,
            without_text=True,
        )
        answer = await self._ask(principal, lambda stub: stub.ApplyChatTemplate(request))
        return _encoded(answer, tuple(answer.stop_token_ids))

    async def encode(
        self,
        principal: Principal,
        model: str,
        texts: Sequence[str],
        *,
        special_tokens: bool,
        max_ids: int,
    ) -> list[Encoded]:
        """Each text by itself; of one of more than `max_ids`, their number alone. Without
        `special_tokens` what it spells like one is text; of one that holds some, `stop_ids`."""
        request = tokenizer_pb2.EncodeRequest(
            model=model,
            texts=texts,
            parse_special=special_tokens,
            add_special=True,
            max_ids=max_ids,
        )
        answer = await self._ask(principal, lambda stub: stub.Encode(request))
        stop_ids = tuple(answer.stop_token_ids)
        # A tokenizer of the release before says nothing of each.
        special = answer.special or [bool(stop_ids)] * len(answer.sequences)
        return [
            _encoded(sequence, stop_ids if has_special else ())
            for sequence, has_special in zip(answer.sequences, special, strict=True)
        ]

    async def token_bytes(
        self, principal: Principal, model: str, ids: Sequence[int]
    ) -> dict[int, bytes]:
        """Each token's bytes, which may be half a character."""
        # Copied before anything is awaited: other calls put in theirs, and push these out.
        cache = self._token_bytes
        found = {id_: cache[model, id_] for id_ in ids if (model, id_) in cache}
        missing = sorted(set(ids) - found.keys())
        for first in range(0, len(missing), ASKED_TOKENS):
            asked = missing[first : first + ASKED_TOKENS]
            sequences = [tokenizer_pb2.TokenIds(ids=[id_]) for id_ in asked]
            request = tokenizer_pb2.DecodeRequest(model=model, sequences=sequences, raw=True)
            answer = await self._decoded(principal, request)
            fetched = dict(zip(asked, answer.raw, strict=True))
            found |= fetched
            cache.update(((model, id_), raw) for id_, raw in fetched.items())
            while len(cache) > KEPT_TOKENS:
                cache.popitem(last=False)
        return found

    async def _decoded(
        self, principal: Principal, request: tokenizer_pb2.DecodeRequest
    ) -> tokenizer_pb2.DecodeResponse:
        answer: tokenizer_pb2.DecodeResponse = await self._ask(
            principal, lambda stub: stub.Decode(request)
        )
        return answer

    def stream(self, principal: Principal, model: str) -> TextStream:
        """A detokeniser for one answer. Close it."""
        return TextStream(self, principal, model)

    async def ping(self) -> None:
        """Unavailable when no tokenizer is announced."""
        await self._clients.pick(STAGE)

    async def with_retries(
        self, principal: Principal, work: Callable[[Any], Awaitable[T]], patience_s: float
    ) -> T:
        """`work` with a stub, again with another while tokenizers are unavailable."""
        # A key that may ask for answers needs no scope of its own for the text in them.
        caller = Principal(principal.tenant, principal.key_id, frozenset({"tokenize"}))
        stub = tokenizer_pb2_grpc.TokenizerServiceStub
        return await with_retries(
            self._clients, STAGE, lambda channel: work(stub(channel)), caller, patience_s
        )

    async def _ask(self, principal: Principal, work: Callable[[Any], Awaitable[T]]) -> T:
        return await self.with_retries(principal, work, self.patience_s)


def _encoded(
    answer: tokenizer_pb2.TokenIds | tokenizer_pb2.ApplyChatTemplateResponse,
    stop_ids: tuple[int, ...],
) -> Encoded:
    # A copy, which doesn't keep the rest of the answer.
    ids = tokenizer_pb2.TokenIds(ids=answer.ids).ids
    return Encoded(ids, answer.count or len(ids), stop_ids)


@dataclass(frozen=True)
class Piece:
    """What ids have completed of a text. For each id, in characters from the text's start: where
    its own text starts, and how much text there was once it had come (the rest of `text` belongs
    to the end of the whole)."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]


class TextStream:
    """Ids of one answer in, its text out, never half a character."""

    def __init__(self, texts: Texts, principal: Principal, model: str) -> None:
        self._texts = texts
        self._principal = principal
        self._model = model
        self._ids = array("I")  # all of them: another tokenizer would begin anew
        # What was passed on, so that another tokenizer's text can be compared with it.
        self._length = 0
        self._digest = hashlib.blake2b()
        self._call: Any = None

    async def feed(self, ids: Sequence[int], *, flush: bool = False) -> Piece:
        """What `ids` complete; with `flush`, up to the end, without half a character."""
        self._ids.extend(ids)
        answer = None
        if self._call is not None:
            message = tokenizer_pb2.DecodeStreamRequest(ids=ids, flush=flush)
            try:
                answer = await self._exchange(self._call, message)
            except PlinthError:  # the one that is asked next says it again, if it is the answer
                self.close()
        if answer is None:
            answer = await self._texts.with_retries(
                self._principal, lambda stub: self._start(stub, flush), self._texts.resume_s
            )
        piece = self._piece(answer, len(ids))
        self._length += len(piece.text)
        self._digest.update(piece.text.encode())
        return piece

    def close(self) -> None:
        """Ends the stream; idempotent."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _piece(self, answer: tokenizer_pb2.DecodeStreamResponse, count: int) -> Piece:
        if (
            len(answer.ends) < count
        ):  # a tokenizer of the release before: all belongs to the last id
            begin, end = self._length, self._length + len(answer.text)
            return Piece(answer.text, (begin,) * count, ((begin,) * count + (end,))[1:])
        new = len(answer.ends) - count  # all before was passed on already
        return Piece(answer.text, tuple(answer.starts[new:]), tuple(answer.ends[new:]))

    async def _start(self, stub: Any, flush: bool) -> tokenizer_pb2.DecodeStreamResponse:
        """Opens a stream with all ids so far; what is new in it."""
        call = stub.DecodeStream()
        try:
            first = tokenizer_pb2.DecodeStreamRequest(
                model=self._model, skip_special=True, ids=self._ids, flush=flush
            )
            answer = await self._exchange(call, first)
            passed_on, answer.text = answer.text[: self._length], answer.text[self._length :]
            if hashlib.blake2b(passed_on.encode()).digest() != self._digest.digest():
                raise Internal("two tokenizers give different text for the same ids")
            self._call = call
        finally:
            if self._call is not call:
                call.cancel()
        return answer

    @staticmethod
    async def _exchange(
        call: Any, message: tokenizer_pb2.DecodeStreamRequest
    ) -> tokenizer_pb2.DecodeStreamResponse:
        await call.write(message)
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise Unavailable("the tokenizer ended the stream")
        assert isinstance(answer, tokenizer_pb2.DecodeStreamResponse)
        return answer
