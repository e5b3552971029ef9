"""Text to ids and back, by the tokenizer stage.

Incremental detokenising is one bidirectional stream per answer: the gateway writes the ids that
came and reads the text that they complete. If the tokenizer dies in mid-answer, another one gets
all ids again, and the text that it has passed on already is left out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from plinth.gateway.patience import patiently
from plinth.shared.errors import Internal, Unavailable
from plinth.shared.identity import Principal
from plinth.shared.rpc.client import StageClients
from plinth.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

STAGE = "tokenizer"
KEPT_TOKENS = 65_536

T = TypeVar("T")


class Texts:
    """The tokenizer stage as the gateway uses it. `model` is an artifact reference."""

    def __init__(self, clients: StageClients, patience_s: float, resume_s: float) -> None:
        """How long to wait for a tokenizer: for a prompt, and for an answer that has begun."""
        self._clients = clients
        self.patience_s = patience_s
        self.resume_s = resume_s
        self._token_bytes: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    async def chat(
        self, principal: Principal, model: str, messages: Sequence[common_pb2.ChatMessage]
    ) -> tuple[list[int], list[int]]:
        """(prompt ids with the assistant's turn opened, ids that end a turn)."""
        request = tokenizer_pb2.ApplyChatTemplateRequest(
            model=model, messages=messages, add_generation_prompt=True
        )
        answer = await self._ask(principal, lambda stub: stub.ApplyChatTemplate(request))
        return list(answer.ids), list(answer.stop_token_ids)

    async def encode(
        self, principal: Principal, model: str, text: str, *, special_tokens: bool
    ) -> tuple[list[int], list[int]]:
        """(ids of `text`, ids that end a turn where it holds special tokens). Without
        `special_tokens` what it spells like one is text."""
        request = tokenizer_pb2.EncodeRequest(
            model=model, texts=[text], parse_special=special_tokens, add_special=True
        )
        answer = await self._ask(principal, lambda stub: stub.Encode(request))
        return list(answer.sequences[0].ids), list(answer.stop_token_ids)

    async def decode(self, principal: Principal, model: str, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out, as a stream of them would give it."""
        request = tokenizer_pb2.DecodeRequest(
            model=model, sequences=[tokenizer_pb2.TokenIds(ids=ids)], skip_special=True
        )
        answer = await self._ask(principal, lambda stub: stub.Decode(request))
        return str(answer.texts[0])

    async def token_bytes(
        self, principal: Principal, model: str, ids: Sequence[int]
    ) -> dict[int, bytes]:
        """Each token's bytes, which may be half a character."""
        missing = sorted({id_ for id_ in ids if (model, id_) not in self._token_bytes})
        if missing:
            request = tokenizer_pb2.DecodeRequest(
                model=model,
                sequences=[tokenizer_pb2.TokenIds(ids=[id_]) for id_ in missing],
                raw=True,
            )
            answer = await self._ask(principal, lambda stub: stub.Decode(request))
            for id_, raw in zip(missing, answer.raw, strict=True):
                self._token_bytes[(model, id_)] = raw
        found = {id_: self._token_bytes[(model, id_)] for id_ in ids}
        while len(self._token_bytes) > KEPT_TOKENS:
            self._token_bytes.popitem(last=False)
        return found

    def stream(self, principal: Principal, model: str) -> TextStream:
        """A detokeniser for one answer. Close it."""
        return TextStream(self, principal, model)

    async def ping(self) -> None:
        """Unavailable when no tokenizer is announced."""
        await self._clients.pick(STAGE)

    async def patiently(
        self, principal: Principal, work: Callable[[Any], Awaitable[T]], patience_s: float
    ) -> T:
        """`work` with a stub, again with another while tokenizers are unavailable."""
        # A key that may ask for answers needs no scope of its own for the text in them.
        caller = Principal(principal.tenant, principal.key_id, frozenset({"tokenize"}))
        stub = tokenizer_pb2_grpc.TokenizerServiceStub
        return await patiently(
            self._clients, STAGE, lambda channel: work(stub(channel)), caller, patience_s
        )

    async def _ask(self, principal: Principal, work: Callable[[Any], Awaitable[T]]) -> T:
        return await self.patiently(principal, work, self.patience_s)


class TextStream:
    """Ids of one answer in, its text out, never half a character."""

    def __init__(self, texts: Texts, principal: Principal, model: str) -> None:
        self._texts = texts
        self._principal = principal
        self._model = model
        self._ids: list[int] = []
        self._emitted = ""
        self._call: Any = None

    async def feed(self, ids: Sequence[int], *, flush: bool = False) -> str:
        """Text that `ids` complete; with `flush`, up to the end, without half a character."""
        self._ids.extend(ids)
        text = ""
        if self._call is not None:
            message = tokenizer_pb2.DecodeStreamRequest(ids=ids, flush=flush)
            try:
                text = await self._exchange(self._call, message)
            except (grpc.aio.AioRpcError, Unavailable, asyncio.InvalidStateError):
                self.close()
        if self._call is None:
            text = await self._texts.patiently(
                self._principal, lambda stub: self._start(stub, flush), self._texts.resume_s
            )
        self._emitted += text
        return text

    def close(self) -> None:
        """Ends the stream; idempotent."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _start(self, stub: Any, flush: bool) -> str:
        """Opens a stream with all ids so far; the text that is new in it."""
        call = stub.DecodeStream()
        try:
            first = tokenizer_pb2.DecodeStreamRequest(
                model=self._model, skip_special=True, ids=self._ids, flush=flush
            )
            whole = await self._exchange(call, first)
            if not whole.startswith(self._emitted):
                raise Internal("two tokenizers give different text for the same ids")
            self._call = call
        finally:
            if self._call is not call:
                call.cancel()
        return whole[len(self._emitted) :]

    @staticmethod
    async def _exchange(call: Any, message: tokenizer_pb2.DecodeStreamRequest) -> str:
        await call.write(message)
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise Unavailable("the tokenizer ended the stream")
        return str(answer.text)
