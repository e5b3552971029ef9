"""Text and ids of a request's items, by the tokenizer stage.

A reward model reads ids of its own tokenizer. Ids that came are taken as they are, when they are
of an equal tokenizer; text is encoded; messages are rendered by the model's chat template, with a
text answer as the assistant's turn, and end where an answer does (`shared.answer_spans`), just as
training rendered its pairs: there the model is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from plinth.internal.v1 import tokenizer_pb2
from plinth.reward.request import Asked
from plinth.shared.answer_spans import answer_spans
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import SYSTEM
from plinth.shared.rpc.client import StageClients
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import chat_pb2
from plinth.v1 import rewards_pb2 as pb

TOKENIZER = "tokenizer.json"
CALL_S = 60.0
_AT_ONCE = 16
_BATCH_IDS, _BATCH_CHARS = 1_000_000, 1 << 20  # per call of the tokenizer, which has limits
_BATCH_ITEMS = 1024
T = TypeVar("T")
U = TypeVar("U")


class Texts:
    """Calls of the tokenizer stage, which may be away for a moment: Unavailable."""

    def __init__(self, clients: StageClients, store: ArtifactStore) -> None:
        self._clients, self._store = clients, store

    async def answers(self, asked: Asked) -> list[str]:
        """Each item's response as text, special tokens left out."""
        texts = [item.response_text for item in asked.items]
        coded = [i for i, item in enumerate(asked.items) if item.HasField("response_tokens")]
        if not coded:
            return texts
        ids = [list(asked.items[i].response_tokens.ids) for i in coded]
        decoded = await _in_batches(
            ids, len, _BATCH_IDS, lambda batch: self._decode(asked.tokenizer, batch)
        )
        for i, text in zip(coded, decoded, strict=True):
            texts[i] = text
        return texts

    async def sequences(self, asked: Asked, model: ArtifactRecord) -> list[tuple[int, ...]]:
        """Prompt and response of each item as ids of `model`; empty where the response is."""
        await self._check_ids(asked, model)
        gate = asyncio.Semaphore(_AT_ONCE)
        plain = [text for item in asked.items for text in _plain_texts(item)]
        encoded = dict(zip(plain, await self._encode_all(plain, model.ref), strict=True))

        async def one(item: pb.RewardItem) -> tuple[int, ...]:
            if not (item.response_tokens.ids or item.response_text.strip()):
                return ()
            if item.HasField("prompt_messages"):
                async with gate:
                    return await self._rendered(item, model.ref)
            prompt = (
                item.prompt_tokens.ids
                if item.HasField("prompt_tokens")
                else encoded[item.prompt_text]
            )
            response = (
                item.response_tokens.ids
                if item.HasField("response_tokens")
                else encoded[item.response_text]
            )
            return (*prompt, *response)

        return list(await asyncio.gather(*(one(item) for item in asked.items)))

    async def _rendered(self, item: pb.RewardItem, model: str) -> tuple[int, ...]:
        prompt = list(item.prompt_messages.messages)
        asked = [tokenizer_pb2.Conversation(messages=prompt, add_generation_prompt=True)]
        as_ids = item.HasField("response_tokens")
        if not as_ids:
            answer = chat_pb2.ChatMessage(role="assistant", content=item.response_text)
            asked.append(tokenizer_pb2.Conversation(messages=[*prompt, answer]))
        stub = await self._clients.tokenizer(SYSTEM)
        made = await stub.ApplyChatTemplates(
            tokenizer_pb2.ApplyChatTemplatesRequest(model=model, conversations=asked),
            timeout=CALL_S,
        )
        opened, *whole = (list(sequence.ids) for sequence in made.sequences)
        if as_ids:
            return (*opened, *item.response_tokens.ids)
        turns = [(opened, whole[0])]
        ids, _ = answer_spans(
            whole[0], turns, list(made.stop_token_ids), cut_off=item.response_cut_off
        )
        return tuple(ids)

    async def _check_ids(self, asked: Asked, model: ArtifactRecord) -> None:
        """Ids mean nothing to a model with another vocabulary."""
        with_ids = [
            i
            for i, item in enumerate(asked.items)
            if item.HasField("prompt_tokens") or item.HasField("response_tokens")
        ]
        if not with_ids or not asked.tokenizer:
            return  # without a tokenizer named, the ids are said to be the model's own
        theirs = await asyncio.to_thread(self._store.get, asked.tokenizer)
        if _tokenizer_digest(theirs) != _tokenizer_digest(model):
            raise InvalidArgument(
                f"items.{with_ids[0]}: its ids are of {theirs.ref}, whose tokenizer is not that of "
                f"the reward model {model.ref}; send text (and messages) instead",
                field=f"items.{with_ids[0]}",
            )

    async def _decode(self, tokenizer: str, ids: Sequence[list[int]]) -> list[str]:
        stub = await self._clients.tokenizer(SYSTEM)
        decoded = await stub.Decode(
            tokenizer_pb2.DecodeRequest(
                model=tokenizer,
                sequences=[tokenizer_pb2.TokenIds(ids=one) for one in ids],
                skip_special=True,
            ),
            timeout=CALL_S,
        )
        return list(decoded.texts)

    async def _encode_all(self, texts: Sequence[str], model: str) -> list[list[int]]:
        async def encode(batch: Sequence[str]) -> list[list[int]]:
            stub = await self._clients.tokenizer(SYSTEM)
            request = tokenizer_pb2.EncodeRequest(model=model, texts=batch)
            encoded = await stub.Encode(request, timeout=CALL_S)
            return [list(sequence.ids) for sequence in encoded.sequences]

        return await _in_batches(texts, len, _BATCH_CHARS, encode)


def _plain_texts(item: pb.RewardItem) -> list[str]:
    """What has to be encoded by itself."""
    if item.HasField("prompt_messages"):
        return []
    named = ("prompt_text", "response_text")
    return [str(getattr(item, name)) for name in named if item.HasField(name)]  # type: ignore[arg-type]


def _tokenizer_digest(record: ArtifactRecord) -> str | None:
    file = record.manifest["files"].get(TOKENIZER)
    return None if file is None else str(file["sha256"])


async def _in_batches(
    values: Sequence[T],
    size: Callable[[T], int],
    limit: int,
    call: Callable[[Sequence[T]], Awaitable[list[U]]],
) -> list[U]:
    """Calls with consecutive values, each of at most `limit` in size (a larger one alone)."""
    results: list[U] = []
    batch: list[T] = []
    filled = 0
    for value in values:
        if batch and (filled + size(value) > limit or len(batch) == _BATCH_ITEMS):
            results += await call(batch)
            batch, filled = [], 0
        batch.append(value)
        filled += size(value)
    if batch:
        results += await call(batch)
    return results
