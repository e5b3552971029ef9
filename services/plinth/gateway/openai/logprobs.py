"""Tokens with their log-probs in OpenAI's two shapes: a chat's entries, a completion's columns.

Both come in steps, since a token with 20 alternatives is a kilobyte of JSON.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from plinth.gateway.generation.answer_scores import LOWEST_LOGPROB
from plinth.gateway.generation.generator import Prepared
from plinth.gateway.generation.texts import Texts
from plinth.shared.tasks import next_turn
from plinth.v1 import sampling_pb2

Json = dict[str, Any]
STEP_TOKENS = 16  # with their alternatives, rendered in one turn of the loop


class Logprobs:
    """Those of one request's answers. `names`: of the lists that they make."""

    names: tuple[str, ...] = ()

    def __init__(self, texts: Texts, prepared: Prepared, alternatives: int) -> None:
        """alternatives: to be shown for each token; the tokens have as many or more."""
        self._texts = texts
        self._prepared = prepared
        self._alternatives = alternatives

    async def steps(
        self, tokens: Sequence[sampling_pb2.Token], offsets: Sequence[int]
    ) -> AsyncGenerator[tuple[list[Any], ...], None]:
        """What the lists are longer by, some tokens at a time. offsets: see TextEvent."""
        for at in range(0, len(tokens), STEP_TOKENS):
            step = tokens[at : at + STEP_TOKENS]
            raw = await self._token_bytes(step)
            yield self._step(step, offsets[at : at + STEP_TOKENS], raw)
            await next_turn()

    def whole(self, lists: Iterable[Any]) -> Json | None:
        """The value of "logprobs"; `lists` in the order of `names`."""
        return dict(zip(self.names, lists, strict=True))

    def _step(
        self, tokens: Sequence[sampling_pb2.Token], offsets: Sequence[int], raw: Mapping[int, bytes]
    ) -> tuple[list[Any], ...]:
        raise NotImplementedError

    async def _token_bytes(self, tokens: Sequence[sampling_pb2.Token]) -> dict[int, bytes]:
        ids = [token.id for token in tokens]
        ids += [top.id for token in tokens for top in token.top]
        prepared = self._prepared
        return await self._texts.token_bytes(prepared.principal, prepared.model.artifact, ids)


class ChatLogprobs(Logprobs):
    """A list of entries."""

    names = ("content",)

    def whole(self, lists: Iterable[Any]) -> Json | None:
        """None for an answer, or a piece of one, without tokens."""
        (content,) = lists
        return {"content": content, "refusal": None} if content else None

    def _step(
        self, tokens: Sequence[sampling_pb2.Token], offsets: Sequence[int], raw: Mapping[int, bytes]
    ) -> tuple[list[Any], ...]:
        return (
            [
                {
                    **_entry(raw[token.id], token.raw_logprob),
                    "top_logprobs": [
                        _entry(raw[top.id], top.logprob) for top in token.top[: self._alternatives]
                    ],
                }
                for token in tokens
            ],
        )


class CompletionLogprobs(Logprobs):
    """A list for each of their properties."""

    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

    def _step(
        self, tokens: Sequence[sampling_pb2.Token], offsets: Sequence[int], raw: Mapping[int, bytes]
    ) -> tuple[list[Any], ...]:
        texts = {id_: token_text(one) for id_, one in raw.items()}
        return (
            [texts[token.id] for token in tokens],
            [finite(token.raw_logprob) for token in tokens],
            [_by_text(token.top[: self._alternatives], texts, token.id) for token in tokens],
            list(offsets),
        )


def _entry(raw: bytes, logprob: float) -> Json:
    return {"token": token_text(raw), "logprob": finite(logprob), "bytes": list(raw)}


def token_text(raw: bytes) -> str:
    """A token by itself. One that ends inside a character is no text; as at OpenAI it is then
    `bytes:` with its bytes, those that are ASCII and printable as themselves."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        shown = (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw)
        return "bytes:" + "".join(shown)


def finite(logprob: float) -> float:
    """`logprob`, or OpenAI's stand-in for one that JSON can't spell."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def _by_text(
    tops: Sequence[sampling_pb2.TopLogprob], texts: Mapping[int, str], sampled: int
) -> dict[str, float]:
    """Alternatives by what they say. Where two say the same, the sampled one has the name (or else
    the likelier), and the other is told by its id."""
    named: dict[str, float] = {}
    owner = {texts[top.id]: top.id for top in reversed(tops)}
    owner |= {texts[top.id]: top.id for top in tops if top.id == sampled}
    for top in tops:
        text = texts[top.id]
        name = text if owner[text] == top.id else f"token_id:{top.id}"
        named[name] = finite(top.logprob)
    return named
