"""What a caller asks of the engine and what it hears back. Ids only; no text, no transport."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from plinth.shared.errors import InvalidArgument, PlinthError

MAX_STOP_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**64 - 1


class Finish(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Binding:
    """Weights, adapter and storage that a request's keys and values belong to."""

    weights_digest: str
    adapter: str = ""
    quantization: str = ""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int = 0
    # "": as the engine is configured; "off", "lookup" or "draft".
    speculation: str = ""
    first_output_position: int = 0
    sample_index: int = 0
    keep_stop: bool = False  # the stop token is part of the answer (a policy chose it)

    def __post_init__(self) -> None:
        """Numbers of other types (an int temperature, numpy's) become what kernels are given;
        InvalidArgument where they are none."""
        for name in ("temperature", "top_p"):
            _convert(self, name, _number)
        for name in ("top_k", "seed", "max_tokens", "top_logprobs"):
            _convert(self, name, operator.index)
        for name in ("first_output_position", "sample_index"):
            _convert(self, name, operator.index)
        _convert(self, "stop_ids", _token_ids(frozenset))


@dataclass(frozen=True)
class Request:
    """One sequence to continue, or (with `score_from`) one to score.

    `deadline` is on the engine's clock (seconds); `tenant` salts the prefix cache, so that one
    tenant cannot tell by timing what another one asked. `score_from` is the first position whose
    log-probability is wanted.
    """

    id: str
    ids: tuple[int, ...]
    binding: Binding
    sampling: Sampling = field(default_factory=Sampling)
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    score_from: int | None = None

    @property
    def length(self) -> int:
        """Tokens that it may come to have. The same where a part of the answer is given back as
        input, with as many fewer `max_tokens`."""
        scored = self.score_from is not None
        return len(self.ids) + (0 if scored else self.sampling.max_tokens)

    def __post_init__(self) -> None:
        _convert(self, "ids", _token_ids(tuple))
        _convert(self, "priority", operator.index)
        if self.score_from is not None:
            _convert(self, "score_from", operator.index)
        if self.deadline is not None:
            _convert(self, "deadline", _number)


@dataclass(frozen=True)
class SampledToken:
    """A token with its log-probabilities: after temperature and filters, and before."""

    id: int
    logprob: float
    raw_logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Usage:
    """Counts of one request, in tokens."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    draft_proposed: int = 0
    draft_accepted: int = 0


@dataclass(frozen=True)
class TokensEvent:
    """Tokens of one request; the last event carries `finish`."""

    request_id: str
    tokens: tuple[SampledToken, ...]
    finish: Finish | None
    usage: Usage


@dataclass(frozen=True)
class ScoresEvent:
    """Log-probabilities of a scored sequence, from its `score_from` on; or why there are none."""

    request_id: str
    logprobs: tuple[float, ...]
    finish: Finish | None = None


@dataclass(frozen=True)
class FailedEvent:
    """A request that the engine could not go on with: what was wrong with it. It has ended."""

    request_id: str
    error: PlinthError


Event = TokensEvent | ScoresEvent | FailedEvent


def validate(request: Request, *, vocab_size: int, limit: int) -> None:
    """The one check in front of the engine, for every caller. Raises InvalidArgument.

    `limit` is the most positions a sequence may take: the context, or the whole cache.
    """
    ids, sampling = request.ids, request.sampling
    if not ids:
        raise InvalidArgument("the input is empty; give at least one token", field="input")
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise InvalidArgument(
            f"token id {wrong} is outside the vocabulary of {vocab_size}", field="input"
        )
    if request.deadline is not None and math.isnan(request.deadline):
        raise InvalidArgument("deadline is NaN, must be a time", field="deadline")
    if request.score_from is not None:
        _validate_score(request, limit)
        return
    if len(ids) >= limit:
        raise InvalidArgument(
            f"the prompt has {len(ids)} tokens, the context holds {limit} with the answer; "
            "shorten the prompt",
            reason="context_length_exceeded",
            field="input",
        )
    _within("temperature", sampling.temperature, 0.0, 2.0)
    if not 0.0 < sampling.top_p <= 1.0:
        raise InvalidArgument(f"top_p is {sampling.top_p}, must be in (0, 1]", field="top_p")
    _within("top_k", sampling.top_k, 0, vocab_size)
    _within("top_logprobs", sampling.top_logprobs, 0, MAX_TOP_LOGPROBS)
    _within("seed", sampling.seed, 0, MAX_SEED)
    _within("sample_index", sampling.sample_index, 0, 2**31 - 1)
    _within("max_tokens", sampling.max_tokens, 1, 2**31 - 1)
    if not 0 <= sampling.first_output_position < len(ids):
        raise InvalidArgument(
            f"first_output_position is {sampling.first_output_position}, "
            f"but the input has {len(ids)} tokens",
            field="first_output_position",
        )
    if len(sampling.stop_ids) > MAX_STOP_IDS:
        raise InvalidArgument(
            f"{len(sampling.stop_ids)} stop ids, at most {MAX_STOP_IDS}", field="stop_token_ids"
        )
    if sampling.speculation not in ("", "off", "lookup", "draft"):
        raise InvalidArgument(
            f"speculation is {sampling.speculation!r}; use '', 'off', 'lookup' or 'draft'",
            field="speculation",
        )


def _convert(owner: object, name: str, kind: Callable[[Any], Any]) -> None:
    value = getattr(owner, name)
    try:
        object.__setattr__(owner, name, kind(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{name} is {value!r:.80}: {error}", field=name) from error


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError("must be a number")
    return float(value)


def _token_ids(collection: Callable[[Iterable[int]], Any]) -> Callable[[Iterable[Any]], Any]:
    return lambda ids: collection(map(operator.index, ids))


def _validate_score(request: Request, limit: int) -> None:
    start = request.score_from or 0
    if len(request.ids) > limit:
        raise InvalidArgument(
            f"the sequence has {len(request.ids)} tokens, at most {limit} can be scored",
            reason="context_length_exceeded",
            field="ids",
        )
    if not 1 <= start < len(request.ids):
        raise InvalidArgument(
            f"from_position is {start}, must be 1 to {len(request.ids) - 1}",
            field="from_position",
        )


def _within(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise InvalidArgument(f"{name} is {value}, must be {low} to {high}", field=name)
