"""Requests in OpenAI's shape, strictly typed: what of them Plinth has.

What becomes of all other fields is in `field_rules.py`. `ChatBody.of` and `CompletionBody.of` make
a checked request of a JSON object, or raise InvalidArgument with the name of the first field that
is wrong. See https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from plinth.gateway import limits
from plinth.gateway.generation.generator import TextRequest
from plinth.gateway.openai.chat_messages import normalised, read_messages
from plinth.gateway.openai.field_rules import Ignored, Rules
from plinth.gateway.openai.known_fields import CHAT, COMPLETION
from plinth.gateway.openai.prompts import read_prompts
from plinth.gateway.openai.request_body import RequestBody, Whole, opened
from plinth.gateway.rest.bodies import validated
from plinth.shared.errors import InvalidArgument
from plinth.v1 import chat_pb2


class ChatBody(RequestBody):
    """POST /v1/chat/completions."""

    RULES: ClassVar[Rules] = CHAT

    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=limits.MAX_TOP_LOGPROBS)
    safety_identifier: str | None = None

    _messages: list[chat_pb2.ChatMessage] = PrivateAttr(default_factory=list)

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
    def messages(self) -> list[chat_pb2.ChatMessage]:
        """The conversation, checked."""
        return self._messages

    @property
    def who(self) -> str:
        """`safety_identifier`, or its older name."""
        return self.safety_identifier or self.user or ""

    @property
    def asked_tokens(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        asked = opened(self.max_completion_tokens)
        return opened(self.max_tokens) if asked is None else asked

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def asks(self, prompt_field: str = "messages") -> list[TextRequest]:
        """What the gateway's core is asked: one."""
        return [
            TextRequest(
                self.model,
                normalised(self.messages),
                self.sampling(),
                self.stops,
                self.samples,
                prompt_field,
                self.samples_field,
                whole=not self.stream,
                user=self.who,
            )
        ]

    def _check(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgument(
                "top_logprobs: needs logprobs to be true",
                reason="INVALID_LOGPROBS",
                field="top_logprobs",
            )
        given = {opened(self.max_tokens), opened(self.max_completion_tokens)} - {None}
        if len(given) > 1:
            raise InvalidArgument(
                "max_tokens: differs from max_completion_tokens; give one of them",
                reason="INVALID_MAX_TOKENS",
                field="max_tokens",
            )
        tokens_field = (
            "max_completion_tokens"
            if opened(self.max_completion_tokens) is not None
            else "max_tokens"
        )
        limits.check_max_tokens(self.asked_tokens, tokens_field)
        limits.check_text(self.safety_identifier or "", "safety_identifier")
        super()._check()


class CompletionBody(RequestBody):
    """POST /v1/completions."""

    RULES: ClassVar[Rules] = COMPLETION
    DEFAULT_TOKENS: ClassVar[int] = 16  # OpenAI's

    logprobs: Annotated[Whole | None, BeforeValidator(lambda v: None if v is False else v)] = Field(
        default=None, ge=0, le=limits.MAX_TOP_LOGPROBS
    )
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
        return self.DEFAULT_TOKENS if self.max_tokens is None else opened(self.max_tokens)

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return self.logprobs

    def asks(self, prompt_field: str = "prompt") -> list[TextRequest]:
        """What the gateway's core is asked: one for each prompt."""
        deaths: set[str] = set()  # of shards, under any of the prompts
        return [
            TextRequest(
                self.model,
                prompt,
                self.sampling(),
                self.stops,
                self.samples,
                prompt_field,
                self.samples_field,
                answers=len(self.prompts) * self.samples,
                whole=not self.stream,
                user=self.who,
                special_tokens=self.special_tokens is not False,
                deaths=deaths,
            )
            for prompt in self.prompts
        ]

    def _check(self) -> None:
        limits.check_max_tokens(self.asked_tokens, "max_tokens")
        super()._check()
        limits.check_answers(len(self.prompts), self.samples, self.samples_field)
