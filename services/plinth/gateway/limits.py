"""Bounds on what a client can ask for, the same at both doors.

Every size that a client controls has one (huge `n`, log-probs, stop lists and bodies have taken
servers down elsewhere). The body's size is a setting; these are part of the interface.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument

MAX_SAMPLES = 8  # n or best_of, and that times the number of prompts
MAX_TOKENS = 131_072  # of one answer
MAX_TOKENS_TOGETHER = 262_144  # of all samples of a request
MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1_024
MAX_STOP_TOKEN_IDS = 64
MAX_PATTERN_CHARS = 1_000
MAX_SELECT_RULES = 15

# NUL and other control characters, without the white space that text and code are made of.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(text: str, field: str) -> None:
    """InvalidArgument unless `text` is Unicode without control characters other than white space.

    They have no meaning in a prompt, and they hide in logs and on terminals what was asked.
    """
    check_unicode(text, field)
    if found := _CONTROL.search(text):
        raise InvalidArgument(
            f"{field}: control character U+{ord(found[0]):04X} at character {found.start()}; "
            "of these only tab, line feed, vertical tab, form feed, carriage return are allowed",
            reason="CONTROL_CHARACTER",
            field=field,
        )


def check_unicode(text: str, field: str) -> None:
    """InvalidArgument for a lone surrogate, which is no character."""
    if found := _SURROGATE.search(text):
        raise InvalidArgument(
            f"{field}: lone surrogate U+{ord(found[0]):04X} at character {found.start()} is not "
            "valid Unicode",
            reason="INVALID_UNICODE",
            field=field,
        )


def check_stops(stops: Sequence[str], field: str = "stop") -> None:
    """At most MAX_STOPS stop strings of 1 to MAX_STOP_CHARS characters."""
    if len(stops) > MAX_STOPS:
        raise InvalidArgument(
            f"{field}: {len(stops)} stop strings given, at most {MAX_STOPS} are allowed",
            reason="TOO_MANY_STOPS",
            field=field,
        )
    for index, stop in enumerate(stops):
        where = f"{field}.{index}"
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidArgument(
                f"{where}: a stop string has 1 to {MAX_STOP_CHARS} characters, not {len(stop)}",
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
    """None, or 1 to MAX_TOKENS."""
    if value is not None and not 1 <= value <= MAX_TOKENS:
        raise InvalidArgument(
            f"{field}: {value} is not between 1 and {MAX_TOKENS}",
            reason="INVALID_MAX_TOKENS",
            field=field,
        )


def check_together(samples: int, max_tokens: int, field: str = "n") -> None:
    """Samples, and samples times tokens, of one request."""
    if samples > MAX_SAMPLES:
        raise InvalidArgument(
            f"{field}: {samples} samples asked for ({field} times the prompts), at most "
            f"{MAX_SAMPLES} are allowed",
            reason="TOO_MANY_SAMPLES",
            field=field,
        )
    if samples * max_tokens > MAX_TOKENS_TOGETHER:
        raise InvalidArgument(
            f"{field}: {samples} samples of up to {max_tokens} tokens are more than "
            f"{MAX_TOKENS_TOGETHER} together",
            reason="TOO_MANY_TOKENS",
            field=field,
        )


def room(prompt_tokens: int, max_tokens: int | None, context_length: int, field: str) -> int:
    """Tokens that an answer may have: what was asked for, cut to what the context leaves."""
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
    return min(left, max_tokens or MAX_TOKENS)
