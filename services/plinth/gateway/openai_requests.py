"""Requests in OpenAI's shape, strictly typed: what of them Plinth has.

What becomes of all other fields is in `field_rules.py`. `ChatBody.of` and `CompletionBody.of` make
a checked request of a JSON object, or raise InvalidArgument with the name of the first field that
is wrong. See https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from plinth.gateway import limits
from plinth.gateway.bodies import validated
from plinth.gateway.chat_messages import read_messages
from plinth.gateway.field_rules import (
    CHAT,
    COMPLETION,
    STREAM_OPTIONS,
    Ignored,
    Rules,
    UnknownFields,
    sift,
)
from plinth.gateway.prompts import read_prompts
from plinth.gateway.selection import Select, Selection, selection_of
from plinth.shared.errors import InvalidArgument
from plinth.v1 import common_pb2

OPEN = -1  # as max_tokens: as many as the context leaves; as seed: any; as top_k: off


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool | None = None


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    RULES: ClassVar[Rules]  # of the fields that are not here

    model: str = Field(min_length=1, max_length=256)
    # 0 is greedy.
    temperature: float | None = Field(default=None, ge=0, le=2)
    # A mass of 0 is that of the likeliest token alone.
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    # -1 is any, as in vLLM and llama.cpp; other negative ones are seeds.
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI's, as in other servers of open models. 0 and -1 are off.
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=limits.MAX_STOP_TOKEN_IDS)
    speculation: Literal["", "off", "lookup", "draft"] | None = None
    # OpenAI's for completions, here for chat too; and our own: what the best ones are.
    best_of: int | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    select: Select | None = None
    # Keeps a user with one revision while a sticky canary is on; nothing else depends on it.
    user: str | None = None

    _ignored: Ignored = PrivateAttr(default_factory=Ignored)

    @classmethod
    def of(cls, given: dict[str, Any], unknown: UnknownFields = "ignore") -> Self:
        """The request that a body asks for. InvalidArgument."""
        ignored = Ignored(unknown)
        known = sift(given, cls._had(), cls.RULES, ignored)
        options = known.get("stream_options")
        if isinstance(options, dict):
            known["stream_options"] = sift(
                options,
                StreamOptions.model_fields,
                STREAM_OPTIONS,
                ignored,
                name="stream_options.",
                path="stream_options.",
            )
        body = cls._read(known, ignored)
        body._ignored = ignored
        body._check()
        return body

    @classmethod
    def _had(cls) -> set[str]:
        """Names of the fields that Plinth has."""
        return set(cls.model_fields)

    @classmethod
    def _read(cls, known: dict[str, Any], ignored: Ignored) -> Self:
        return validated(cls, known)

    @property
    def ignored(self) -> Ignored:
        """What the body brought for nothing."""
        return self._ignored

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings; empty ones are none."""
        return limits.meant_stops(self._given_stops)

    @property
    def _given_stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def who(self) -> str:
        """The client's word for its user; empty where it has none."""
        return self.user or ""

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of one answer; None: as many as the context leaves."""
        raise NotImplementedError

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        raise NotImplementedError

    @property
    def samples(self) -> int:
        """Answers per prompt that are made."""
        return self.best_of or self.n or 1

    @property
    def samples_field(self) -> str:
        """The name under which their number was given."""
        return "n" if self.best_of is None else "best_of"

    @property
    def selection(self) -> Selection | None:
        """Which of them the client gets; None: all. InvalidArgument for what can't be."""
        stream = bool(self.stream)
        return selection_of(self.best_of, self.n or 1, self.select, stream=stream)

    def sampling(self) -> common_pb2.SamplingParams:
        """The sampling parameters, still without a seed and max_tokens where none were given."""
        asked = self.asked_tokens
        params = common_pb2.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k is not None else None,
            max_tokens=min(asked, limits.MAX_TOKENS) if asked is not None else None,
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=self.alternatives or 0,
            speculation=self.speculation or "",
            stop_token_ids=self.stop_token_ids,
        )
        if self.seed is not None and self.seed != OPEN:
            params.seed = self.seed % (1 << 64)
        return limits.normalised(params)

    def _check(self) -> None:
        """InvalidArgument for fields that don't go together, or are not what they are for."""
        options = self.stream_options
        if options is not None and options.include_usage and not self.stream:
            raise InvalidArgument(
                "stream_options: only allowed when stream is true; a whole answer has its usage",
                reason="INVALID_STREAM_OPTIONS",
                field="stream_options",
            )
        limits.check_stops(self._given_stops)
        limits.check_text(self.model, "model")
        limits.check_text(self.who, "user")
        for token_id in self.stop_token_ids or ():
            if not 0 <= token_id < 1 << 32:
                raise InvalidArgument(
                    f"stop_token_ids: {token_id} is no token id", field="stop_token_ids"
                )
        _ = self.selection  # or what is wrong with it
        limits.check_sampling(self.sampling())


class ChatBody(_Body):
    """POST /v1/chat/completions."""

    RULES: ClassVar[Rules] = CHAT

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_TOP_LOGPROBS)
    safety_identifier: str | None = None

    _messages: list[common_pb2.ChatMessage] = PrivateAttr(default_factory=list)

    @classmethod
    def _had(cls) -> set[str]:
        return {"messages", *cls.model_fields}

    @classmethod
    def _read(cls, known: dict[str, Any], ignored: Ignored) -> Self:
        if "messages" not in known:
            raise InvalidArgument(
                "messages: is missing", reason="MISSING_PARAMETER", field="messages"
            )
        messages = read_messages(known.pop("messages"), ignored)
        body = validated(cls, known)
        body._messages = messages
        return body

    @property
    def messages(self) -> list[common_pb2.ChatMessage]:
        """The conversation, checked."""
        return self._messages

    @property
    def who(self) -> str:
        """`safety_identifier`, or its older name."""
        return self.safety_identifier or self.user or ""

    @property
    def asked_tokens(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        if self.max_completion_tokens is not None:
            return _open(self.max_completion_tokens)
        return _open(self.max_tokens)

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def _check(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgument(
                "top_logprobs: needs logprobs to be true",
                reason="INVALID_LOGPROBS",
                field="top_logprobs",
            )
        given = {self.max_tokens, self.max_completion_tokens}
        if len(given) == 2 and None not in given:
            raise InvalidArgument(
                "max_tokens: differs from max_completion_tokens; give one of them",
                reason="INVALID_MAX_TOKENS",
                field="max_tokens",
            )
        tokens_field = (
            "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        )
        limits.check_max_tokens(self.asked_tokens, tokens_field)
        super()._check()


class CompletionBody(_Body):
    """POST /v1/completions."""

    RULES: ClassVar[Rules] = COMPLETION
    DEFAULT_TOKENS: ClassVar[int] = 16  # OpenAI's

    logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_TOP_LOGPROBS)
    # Our own: those that the prompt spells are meant as such, as in vLLM and llama.cpp; by default.
    special_tokens: bool | None = None

    _prompts: list[str | Sequence[int]] = PrivateAttr(default_factory=list)

    @classmethod
    def _had(cls) -> set[str]:
        return {"prompt", *cls.model_fields}

    @classmethod
    def _read(cls, known: dict[str, Any], ignored: Ignored) -> Self:
        if "prompt" not in known:
            raise InvalidArgument("prompt: is missing", reason="MISSING_PARAMETER", field="prompt")
        prompts = read_prompts(known.pop("prompt"))
        body = validated(cls, known)
        body._prompts = prompts
        return body

    @property
    def prompts(self) -> list[str | Sequence[int]]:
        """One entry per prompt, checked: text, or token ids."""
        return self._prompts

    @property
    def asked_tokens(self) -> int | None:
        """`max_tokens`, or OpenAI's default."""
        return self.DEFAULT_TOKENS if self.max_tokens is None else _open(self.max_tokens)

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return self.logprobs

    def _check(self) -> None:
        limits.check_max_tokens(self.asked_tokens, "max_tokens")
        super()._check()
        limits.check_answers(len(self.prompts), self.samples, self.samples_field)


def _open(max_tokens: int | None) -> int | None:
    return None if max_tokens == OPEN else max_tokens
