"""What a served model makes of given text: held-out bits, answers, tokens per second.

The engine scores ids; text becomes ids at the tokenizer stage. A document is read in windows of
the model's context (`plinth.algos.windows`), and each token is judged once:

    bits per byte = -sum over tokens of log2 p(token | window before it) / UTF-8 bytes   (1)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from plinth.algos.windows import windows
from plinth.internal.v1 import inference_pb2, inference_pb2_grpc, tokenizer_pb2
from plinth.shared.errors import DataLoss, FailedPrecondition, Unavailable
from plinth.shared.rpc.client import StageClients
from plinth.v1 import chat_pb2, sampling_pb2

T = TypeVar("T")
_SEPARATOR = "<|endoftext|>"

# Longer windows cost attention time and tell little more about a model than these do.
MAX_WINDOW = 1024
# Ids per Score call and text per Encode call: far below the message limits.
_SCORE_IDS = 8192
_ENCODE_BYTES = 1 << 20
_CALL_S = 300.0
_WHOLE = (sampling_pb2.FINISH_REASON_STOP, sampling_pb2.FINISH_REASON_LENGTH)


@dataclass(frozen=True)
class PromptAnswer:
    prompt: str
    text: str
    tokens: int
    seconds: float
    cut_off: bool  # by max_tokens or the context


def start_id(model: Path, config: dict[str, object]) -> int:
    """The id that stands before a document: the separator that training put there, which is
    <|endoftext|> where the tokenizer has it, else its end-of-sequence; else the model's. Blocks."""
    added = _read_json(model / "tokenizer.json").get("added_tokens") or []
    ids = {str(token["content"]): int(token["id"]) for token in added}
    named = _optional_json(model / "tokenizer_config.json").get("eos_token")
    eos = named.get("content") if isinstance(named, dict) else named
    for token in (_SEPARATOR, eos):
        if token in ids:
            return ids[token]
    for key in ("eos_token_id", "bos_token_id"):
        if found := _ids(config.get(key)):
            return found[0]
    raise FailedPrecondition(
        f"the model's tokenizer has no {_SEPARATOR} and no eos_token, and its config.json no "
        "eos_token_id"
    )


def end_ids(model: Path) -> list[int]:
    """Ids that end an answer by what the model's own files say; its template's are the tokenizer
    stage's to tell. Blocks."""
    files = (_optional_json(model / name) for name in ("generation_config.json", "config.json"))
    return list(dict.fromkeys(id_ for file in files for id_ in _ids(file.get("eos_token_id"))))


def _ids(value: object) -> list[int]:
    """Of a special id as a configuration has it: one, several or none."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def context_length(config: dict[str, object]) -> int:
    """Most tokens that the model sees at once."""
    for key in ("max_position_embeddings", "n_positions"):
        value = config.get(key)
        if isinstance(value, int) and value >= 2:
            return value
    raise FailedPrecondition("the model's config.json names no max_position_embeddings")


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a model artifact's folder. Blocks."""
    return _read_json(model / "config.json")


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataLoss(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise DataLoss(f"{path} is no JSON object")
    return value


class ServedModel:
    """One deployment seen through the stages: `name` is what shards announce, `artifact` the
    version that its tokenizer is taken from."""

    def __init__(
        self, clients: StageClients, name: str, artifact: str, weights_digest: str = ""
    ) -> None:
        """weights_digest: the weights that must answer; empty: whatever is served."""
        self._clients = clients
        self._artifact = artifact
        self._name = name
        self._binding = inference_pb2.Binding(model=name, weights_digest=weights_digest)

    async def document_bits(
        self, documents: Sequence[str], *, start: int, context: int
    ) -> AsyncIterator[tuple[int, float]]:
        """(documents judged so far, bits of all of them so far), as the scoring goes on."""
        window = min(context, MAX_WINDOW)
        bits, done = 0.0, 0
        for texts in _batches(documents, lambda text: len(text.encode()), _ENCODE_BYTES):
            sequences = await self.encode(texts)
            items = [
                inference_pb2.ScoreItem(ids=ids[w.start : w.end], from_position=w.first - w.start)
                for ids in ([start, *sequence] for sequence in sequences)
                for w in windows(len(ids), window)
                if w.end > w.first
            ]
            for batch in _batches(items, lambda item: len(item.ids), _SCORE_IDS):
                bits += await self._score(batch)
                yield done, bits
            done += len(texts)
            yield done, bits

    async def answer(self, prompt: str, *, max_tokens: int, context: int) -> PromptAnswer:
        """The greedy answer to one question by the model's chat template."""
        question = [chat_pb2.ChatMessage(role="user", content=prompt)]
        greedy = sampling_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens)
        return await self.chat(question, greedy, context=context)

    async def chat(
        self,
        messages: Sequence[chat_pb2.ChatMessage],
        sampling: sampling_pb2.SamplingParams,
        *,
        context: int,
        priority: int = 0,
    ) -> PromptAnswer:
        """The whole answer to a conversation, sampled as asked (`max_tokens` set, cut to what the
        context leaves). priority: below 0 for what can wait for people's requests. Unavailable
        when the shard drains in the middle."""
        ids, stops = await self.prompt_ids(messages)
        room = context - len(ids)
        prompt = messages[-1].content
        if room < 1:
            raise FailedPrecondition(
                f"the prompt {prompt[:200]!r} is longer than the model's context"
            )
        asked = sampling_pb2.SamplingParams()
        asked.CopyFrom(sampling)
        asked.max_tokens = min(sampling.max_tokens, room)
        asked.stop_token_ids.extend(one for one in stops if one not in asked.stop_token_ids)
        request = inference_pb2.GenerateRequest(
            binding=self._binding,
            input=[inference_pb2.Span(tokens=inference_pb2.TokenSpan(ids=ids))],
            sampling=asked,
            priority=priority,
        )
        began = time.monotonic()
        shard = await self._shard()
        ids, finish = [], sampling_pb2.FINISH_REASON_UNSPECIFIED
        async for message in shard.Generate(request, timeout=_CALL_S):
            ids += [token.id for token in message.tokens]
            finish = message.finish_reason
        if finish not in _WHOLE:
            raise Unavailable("a shard ended its answer early; another one will be asked")
        seconds = time.monotonic() - began
        tokenizer = await self._clients.tokenizer()
        decoded = await tokenizer.Decode(
            tokenizer_pb2.DecodeRequest(
                model=self._artifact,
                sequences=[tokenizer_pb2.TokenIds(ids=ids)],
                skip_special=True,
            )
        )
        cut_off = finish == sampling_pb2.FINISH_REASON_LENGTH
        return PromptAnswer(prompt, decoded.texts[0], len(ids), seconds, cut_off)

    async def prompt_ids(
        self, messages: Sequence[chat_pb2.ChatMessage]
    ) -> tuple[list[int], list[int]]:
        """(ids of the conversation with the assistant's turn opened, ids that end a turn)."""
        tokenizer = await self._clients.tokenizer()
        templated = await tokenizer.ApplyChatTemplate(
            tokenizer_pb2.ApplyChatTemplateRequest(
                model=self._artifact, messages=messages, add_generation_prompt=True
            )
        )
        return list(templated.ids), list(templated.stop_token_ids)

    async def continuations(
        self, prompt: Sequence[int], endings: Sequence[Sequence[int]]
    ) -> list[float]:
        """log p of each ending (ids) right after the prompt."""
        items = [
            inference_pb2.ScoreItem(ids=[*prompt, *ending], from_position=len(prompt))
            for ending in endings
        ]
        shard = await self._shard()
        request = inference_pb2.ScoreRequest(binding=self._binding, items=items)
        scored = await shard.Score(request, timeout=_CALL_S)
        sums = [math.fsum(result.logprobs) for result in scored.results]
        counts = [len(result.logprobs) for result in scored.results]
        if counts != [len(ending) for ending in endings] or not all(map(math.isfinite, sums)):
            raise DataLoss(f"a shard scored {counts} tokens of {len(endings)} endings")
        return sums

    async def _shard(self) -> inference_pb2_grpc.InferenceServiceAsyncStub:
        replica = await self._clients.pick("inference", model=self._name)
        channel = self._clients.channel(replica)
        return inference_pb2_grpc.InferenceServiceStub(channel)

    async def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added."""
        tokenizer = await self._clients.tokenizer()
        encoded = await tokenizer.Encode(
            tokenizer_pb2.EncodeRequest(model=self._artifact, texts=texts), timeout=_CALL_S
        )
        return [list(sequence.ids) for sequence in encoded.sequences]

    async def _score(self, items: Sequence[inference_pb2.ScoreItem]) -> float:
        shard = await self._shard()
        request = inference_pb2.ScoreRequest(binding=self._binding, items=items)
        scored = await shard.Score(request, timeout=_CALL_S)
        wanted = sum(len(item.ids) - item.from_position for item in items)
        logprobs = [value for result in scored.results for value in result.logprobs]
        if len(logprobs) != wanted or not all(math.isfinite(value) for value in logprobs):
            raise DataLoss(f"a shard scored {len(logprobs)} of {wanted} tokens, or not finitely")
        return -math.fsum(logprobs) / math.log(2)


def _batches(values: Sequence[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Consecutive values in groups of at most `limit` in size; a larger value stands alone."""
    batch: list[T] = []
    filled = 0
    for value in values:
        if batch and filled + size(value) > limit:
            yield batch
            batch, filled = [], 0
        batch.append(value)
        filled += size(value)
    if batch:
        yield batch
