"""Requests in OpenAI's shape, strictly typed, and what of them Plinth does.

A parameter that would change the answer and that Plinth does not have is refused by name;
a parameter that changes nothing (`user`, `metadata`) is accepted. Unknown ones are errors.
See https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.gateway import limits
from plinth.gateway.selection import Select, Selection, selection_of
from plinth.shared.errors import InvalidArgument
from plinth.v1 import common_pb2


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TextPart(_Strict):
    """One part of a message's content; text is the only kind there is."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of a conversation. "developer" is OpenAI's newer word for "system"."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    # What clients echo from an answer; of no meaning without tools.
    name: None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)

    def to_proto(self) -> common_pb2.ChatMessage:
        """The message as the tokenizer takes it."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        role = "system" if self.role == "developer" else self.role
        return common_pb2.ChatMessage(role=role, content="".join(parts))


class StreamOptions(_Strict):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # padding against traffic analysis: not made


class _Common(_Strict):
    model: str = Field(min_length=1, max_length=256)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI's, as in other servers of open models.
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=limits.MAX_STOP_TOKEN_IDS)
    speculation: Literal["", "off", "lookup", "draft"] | None = None
    # OpenAI's for completions, here for chat too; and our own: what the best ones are.
    best_of: int | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    select: Select | None = None
    # Keeps a user with one revision while a sticky canary is on; nothing else depends on it.
    user: str | None = None
    # Nothing depends on these.
    metadata: dict[str, str] | None = None
    # Refused unless they say what happens anyway: see `refuse_unsupported`.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def who(self) -> str:
        """The client's word for its user; empty where it has none."""
        return self.user or ""

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of one answer, where the client said so."""
        return self.max_tokens

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

    def refuse_unsupported(self) -> None:
        """Raises on what would change the answer and is not there."""
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name):
                raise unsupported(name, "only 0 is supported")
        if self.logit_bias:
            raise unsupported("logit_bias", "it is not supported")
        if self.stream_options is not None and not self.stream:
            raise InvalidArgument(
                "stream_options: only allowed when stream is true",
                reason="INVALID_STREAM_OPTIONS",
                field="stream_options",
            )
        limits.check_stops(self.stops)
        _ = self.selection  # or what is wrong with it

    def sampling(self) -> common_pb2.SamplingParams:
        """The sampling parameters, still without seed and max_tokens where none were given."""
        params = common_pb2.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=self.alternatives or 0,
            speculation=self.speculation or "",
        )
        if self.seed is not None:
            params.seed = self.seed % (1 << 64)
        for token_id in self.stop_token_ids or ():
            if not 0 <= token_id < 1 << 32:
                raise InvalidArgument(
                    f"stop_token_ids: {token_id} is no token id", field="stop_token_ids"
                )
            params.stop_token_ids.append(token_id)
        return params


class ChatBody(_Common):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=limits.MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_TOP_LOGPROBS)
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    reasoning_effort: Any = None
    verbosity: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def who(self) -> str:
        """`safety_identifier`, or its older name."""
        return self.safety_identifier or self.user or ""

    @property
    def asked_tokens(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def tokens_field(self) -> str:
        """The name under which the number of tokens was given."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def refuse_unsupported(self) -> None:
        """Raises on what would change the answer and is not there."""
        super().refuse_unsupported()
        for name in ("tools", "functions", "reasoning_effort", "verbosity", "audio", "prediction"):
            if getattr(self, name):
                raise unsupported(name, "it is not supported")
        if self.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", "tools are not supported")
        if self.function_call not in (None, "none", "auto"):
            raise unsupported("function_call", "functions are not supported")
        if self.response_format not in (None, {"type": "text"}):
            raise unsupported("response_format", 'only {"type": "text"} is supported')
        if self.modalities not in (None, ["text"]):
            raise unsupported("modalities", 'only ["text"] is supported')
        if self.web_search_options is not None:
            raise unsupported("web_search_options", "nothing is fetched for a client")
        if self.store:
            raise unsupported("store", "answers are not stored")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidArgument(
                "top_logprobs: needs logprobs to be true",
                reason="INVALID_LOGPROBS",
                field="top_logprobs",
            )
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise InvalidArgument(
                "max_tokens: give either max_completion_tokens or max_tokens, not both",
                reason="INVALID_MAX_TOKENS",
                field="max_tokens",
            )
        limits.check_max_tokens(self.asked_tokens, self.tokens_field)
        for index, message in enumerate(self.messages):
            limits.check_text(message.to_proto().content, f"messages.{index}.content")


class CompletionBody(_Common):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=limits.MAX_TOP_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None
    # Our own: those that the prompt spells are meant as such, as in vLLM and llama.cpp; by default.
    special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]  # ids of one prompt, just checked
        return list(self.prompt)  # type: ignore[arg-type]  # no bare ids, just checked

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probs."""
        return self.logprobs

    def refuse_unsupported(self) -> None:
        """Raises on what would change the answer and is not there."""
        super().refuse_unsupported()
        if self.echo:
            raise unsupported("echo", "the prompt is not sent back")
        if self.suffix:
            raise unsupported("suffix", "it is not supported")
        limits.check_max_tokens(self.max_tokens, "max_tokens")
        prompts = self.prompts
        if not prompts:
            raise InvalidArgument("prompt: is an empty list", reason="EMPTY_PROMPT", field="prompt")
        limits.check_together(len(prompts) * self.samples, 1, self.samples_field)
        for index, prompt in enumerate(prompts):
            where = "prompt" if len(prompts) == 1 else f"prompt.{index}"
            if isinstance(prompt, str):
                limits.check_text(prompt, where)
            elif not all(0 <= token_id < 1 << 32 for token_id in prompt):
                raise InvalidArgument(f"{where}: not all are token ids", field=where)


def unsupported(name: str, why: str) -> InvalidArgument:
    """A parameter whose being ignored would change what the client meant."""
    return InvalidArgument(f"{name}: {why}", reason="UNSUPPORTED_PARAMETER", field=name)
