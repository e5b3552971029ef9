"""Bounds on what a client can ask for, the same for REST and gRPC.

Every size that a client controls has one (huge `n`, log-probs, stop lists and bodies have taken
servers down elsewhere). The body's size is a setting; these are part of the interface.
"""

from __future__ import annotations

from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument
from plinth.v1 import sampling_pb2

MAX_TEXT_BYTES = 1 << 20  # of all texts to encode in one call: each may become an id
MAX_SAMPLES = 8  # n or best_of, of one prompt
MAX_PROMPTS = 2_048  # of one request
MAX_ANSWERS = 2_048  # of one request: prompts times samples
MAX_TOKENS = 131_072  # of one answer
MAX_TOKENS_TOGETHER = 262_144  # of all answers of a request
# Of whole answers, which are held until they are complete: tokens with their alternatives, each of
# some 45 bytes of JSON. A stream has no such bound.
MAX_LOGPROBS_TOGETHER = 262_144
MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_GIVEN_STOPS = 1_024  # with the empty ones, which are none
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1_024
MAX_STOP_TOKEN_IDS = 64
MAX_PATTERN_CHARS = 1_000
MAX_SELECT_RULES = 15
ROLES = ("system", "developer", "user", "assistant")

MIN_TEMPERATURE = 1e-5  # below it the answer is greedy
MIN_TOP_P = 1e-6  # what is likelier than any other token has more


def check_text(text: str, field: str) -> None:
    """InvalidArgument for NUL, which ends a text in much software behind, and lone surrogates.

    Other control characters are part of what people ask about: a log's colours, a form feed in a
    source file. Whatever shows a text on a terminal takes them out there.
    """
    check_unicode(text, field)
    if (at := text.find("\0")) >= 0:
        raise InvalidArgument(
            f"{field}: the character U+0000 (NUL) at character {at} is no text; leave it out",
            reason="CONTROL_CHARACTER",
            field=field,
        )


def check_unicode(text: str, field: str) -> None:
    """InvalidArgument for a lone surrogate, which is no character."""
    try:
        _ = text.isascii() or text.encode()  # some twenty times faster than to search
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{field}: lone surrogate U+{ord(text[error.start]):04X} at character {error.start} is "
            "not valid Unicode; send the whole pair, or the character itself",
            reason="INVALID_UNICODE",
            field=field,
        ) from None


def check_role(role: str, field: str) -> None:
    """InvalidArgument for a role that no template here knows."""
    if role not in ROLES:
        raise InvalidArgument(
            f"{field}: {role[:64]!r} is none of {', '.join(ROLES)}",
            reason="INVALID_VALUE",
            field=field,
        )


def meant_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Stop strings without empty ones, by which some clients say that there are none."""
    return tuple(stop for stop in stops if stop)


def check_stops(stops: Sequence[str], field: str = "stop") -> None:
    """At most MAX_STOPS stop strings of at most MAX_STOP_CHARS characters; empty ones are none."""
    count = len(stops)
    if count <= MAX_GIVEN_STOPS:  # more are not looked at
        count = len(meant_stops(stops))
    if count > MAX_STOPS:
        raise InvalidArgument(
            f"{field}: {count} stop strings given, at most {MAX_STOPS} are allowed",
            reason="TOO_MANY_STOPS",
            field=field,
        )
    for index, stop in enumerate(stops):
        where = f"{field}.{index}"
        if len(stop) > MAX_STOP_CHARS:
            raise InvalidArgument(
                f"{where}: a stop string has at most {MAX_STOP_CHARS} characters, not {len(stop)}",
                reason="STOP_LENGTH",
                field=where,
            )
        check_text(stop, where)


def check_messages(count: int) -> None:
    """1 to MAX_MESSAGES messages."""
    if not 1 <= count <= MAX_MESSAGES:
        raise InvalidArgument(
            f"messages: between 1 and {MAX_MESSAGES} messages are needed, {count} given",
            reason="MESSAGE_COUNT",
            field="messages",
        )


def check_max_tokens(value: int | None, field: str) -> None:
    """None, or at least 1. There is no upper bound: an answer has at most what was asked for, what
    the context leaves and MAX_TOKENS (see `room`)."""
    if value is not None and value < 1:
        raise InvalidArgument(
            f"{field}: {value} is not at least 1; leave it out for as many as the context leaves",
            reason="INVALID_MAX_TOKENS",
            field=field,
        )


def check_sampling(sampling: sampling_pb2.SamplingParams, prefix: str = "") -> None:
    """InvalidArgument for what is outside the bounds of sampling.proto, by `prefix` and name."""
    number = "a number from"
    checks = (
        (
            "temperature",
            not sampling.HasField("temperature") or 0 <= sampling.temperature <= 2,
            f"{number} 0 (greedy) to 2",
        ),
        (
            "top_p",
            not sampling.HasField("top_p") or 0 <= sampling.top_p <= 1,
            f"{number} 0 (the likeliest token alone) to 1 (off)",
        ),
        (
            "top_logprobs",
            sampling.top_logprobs <= MAX_TOP_LOGPROBS,
            f"{number} 0 to {MAX_TOP_LOGPROBS}",
        ),
    )
    for name, good, right in checks:
        if not good:
            raise InvalidArgument(
                f"{prefix}{name}: {getattr(sampling, name):g} is out of range; it is {right}",
                reason="INVALID_VALUE",
                field=f"{prefix}{name}",
            )
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidArgument(
            f"{prefix}stop_token_ids: {len(sampling.stop_token_ids)} ids, at most "
            f"{MAX_STOP_TOKEN_IDS} are allowed",
            reason="INVALID_VALUE",
            field=f"{prefix}stop_token_ids",
        )
    if sampling.HasField("max_tokens"):
        check_max_tokens(sampling.max_tokens, f"{prefix}max_tokens")


def normalised(sampling: sampling_pb2.SamplingParams) -> sampling_pb2.SamplingParams:
    """Checked parameters as the engine takes them.

    Its top_p is above 0; a nucleus of no mass is the likeliest token, as OpenAI has it. A
    temperature next to 0 means 0, as in vLLM.
    """
    meant = sampling_pb2.SamplingParams()
    meant.CopyFrom(sampling)
    if meant.HasField("top_p"):
        meant.top_p = max(meant.top_p, MIN_TOP_P)
    if meant.HasField("temperature") and meant.temperature < MIN_TEMPERATURE:
        meant.temperature = 0
    return meant


def check_samples(samples: int, field: str) -> None:
    """1 to MAX_SAMPLES answers to one prompt."""
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidArgument(
            f"{field}: {samples} answers to one prompt, 1 to {MAX_SAMPLES} are allowed",
            reason="INVALID_VALUE",
            field=field,
        )


def check_answers(prompts: int, samples: int, field: str = "n") -> None:
    """Prompts, samples of each, and both together; `field` is the name of the samples."""
    if not 1 <= prompts <= MAX_PROMPTS:
        raise InvalidArgument(
            f"prompt: {prompts} prompts given, 1 to {MAX_PROMPTS} are allowed in one request",
            reason="PROMPT_COUNT" if prompts else "EMPTY_PROMPT",
            field="prompt",
        )
    if prompts * samples > MAX_ANSWERS:
        raise InvalidArgument(
            f"prompt: {prompts} prompts times {field}={samples} are {prompts * samples} answers, "
            f"at most {MAX_ANSWERS} are allowed in one request",
            reason="TOO_MANY_SAMPLES",
            field="prompt",
        )


def check_together(answers: int, max_tokens: int, field: str) -> None:
    """The tokens that all answers of one request may have; `field` names their number."""
    if answers * max_tokens > MAX_TOKENS_TOGETHER:
        raise InvalidArgument(
            f"{field}: {answers} answers of up to {max_tokens} tokens are more than "
            f"{MAX_TOKENS_TOGETHER} together, which one request may have; ask for fewer, or for "
            f"max_tokens of at most {MAX_TOKENS_TOGETHER // answers}",
            reason="TOO_MANY_TOKENS",
            field=field,
        )


def held_tokens(answers: int, top_logprobs: int) -> int:
    """The most tokens of each of so many whole answers with log-probs: as with the context, a
    max_tokens that is larger is no mistake. At least 1."""
    return MAX_LOGPROBS_TOGETHER // (1 + top_logprobs) // answers


def room(prompt_tokens: int, max_tokens: int | None, context_length: int, field: str) -> int:
    """Tokens that an answer may have: what was asked for, cut to what the context leaves and to
    MAX_TOKENS. It is an upper bound, so that a large one is no mistake."""
    left = context_length - prompt_tokens
    if left < 1:
        raise InvalidArgument(
            f"This model's maximum context length is {context_length} tokens. However, your "
            f"{field} resulted in {prompt_tokens} tokens, which leaves no room for an answer. "
            f"Please reduce the length of the {field}.",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field=field,
            metadata={
                "context_length": str(context_length),
                "prompt_tokens": str(prompt_tokens),
            },
        )
    if prompt_tokens < 1:
        raise InvalidArgument(
            f"{field}: is empty, and this model's tokenizer adds nothing to start from",
            reason="EMPTY_PROMPT",
            field=field,
        )
    return min(left, max_tokens or MAX_TOKENS, MAX_TOKENS)
