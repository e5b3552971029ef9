"""What bodies of chat and of completions have in common, strictly typed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from plinth.gateway import limits
from plinth.gateway.generation.selection import Select, Selection, selection_of
from plinth.gateway.openai.field_rules import Ignored, Rules, UnknownFields, sift
from plinth.gateway.openai.known_fields import STREAM_OPTIONS, USAGE_IN_EACH
from plinth.gateway.rest.bodies import validated
from plinth.shared.errors import InvalidArgument
from plinth.v1 import sampling_pb2

OPEN = -1  # as max_tokens: as many as the context leaves; as seed: any; as top_k: off


_SPECULATION = {
    "": sampling_pb2.SPECULATION_UNSPECIFIED,
    "off": sampling_pb2.SPECULATION_OFF,
    "lookup": sampling_pb2.SPECULATION_LOOKUP,
    "draft": sampling_pb2.SPECULATION_DRAFT,
}
Usage = Literal["none", "last", "each"]  # the chunks of a stream that tell what it has cost
# JSON has one kind of number: 3.0 is an integer, and some languages write it so.
Whole = Annotated[
    int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
]


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool | None = None
    # vLLM's: each chunk has the usage so far. Without include_usage there is none, as there.
    continuous_usage_stats: bool | None = None


class RequestBody(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    RULES: ClassVar[Rules]  # of the fields that are not here

    model: str = Field(min_length=1, max_length=256)
    # 0 is greedy.
    temperature: float | None = Field(default=None, ge=0, le=2)
    # A mass of 0 is that of the likeliest token alone.
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: Whole | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
    # -1 is any, as in vLLM and llama.cpp; other negative ones are seeds.
    seed: Whole | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: Whole | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI's, as in other servers of open models. 0 and -1 are off.
    top_k: Whole | None = Field(default=None, ge=-1, le=1_000_000)
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=limits.MAX_STOP_TOKEN_IDS)
    speculation: Literal["", "off", "lookup", "draft"] | None = None
    # OpenAI's for completions, here for chat too; and our own: what the best ones are.
    best_of: Whole | None = Field(default=None, ge=1, le=limits.MAX_SAMPLES)
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
    def usage(self) -> Usage:
        """Where a stream tells what it cost."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return "none"
        return "each" if options.continuous_usage_stats else "last"

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

    def sampling(self) -> sampling_pb2.SamplingParams:
        """The sampling parameters, still without a seed and max_tokens where none were given."""
        asked = self.asked_tokens
        params = sampling_pb2.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k is not None else None,
            max_tokens=min(asked, limits.MAX_TOKENS) if asked is not None else None,
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=self.alternatives or 0,
            speculation=_SPECULATION[self.speculation or ""],
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
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            self._ignored.add(USAGE_IN_EACH, USAGE_IN_EACH, known=True)
        limits.check_stops(self._given_stops)
        limits.check_text(self.model, "model")
        limits.check_text(self.user or "", "user")
        for token_id in self.stop_token_ids or ():
            if not 0 <= token_id < 1 << 32:
                raise InvalidArgument(
                    f"stop_token_ids: {token_id} is no token id", field="stop_token_ids"
                )
        _ = self.selection  # or what is wrong with it
        limits.check_sampling(self.sampling())


def opened(max_tokens: int | None) -> int | None:
    """A number of tokens as it is meant; None: as many as the context leaves."""
    return None if max_tokens == OPEN else max_tokens
