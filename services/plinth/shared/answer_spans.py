"""Where an answer begins and ends among the ids of a conversation: the one definition.

An answer begins where its turn was opened, and ends with the turn's end token, that token included:
the first id from its beginning on that ends a turn (`stop_ids`, which the tokenizer stage finds in
the chat template). There sampling stops, so there

    supervised fine-tuning stops learning,
    a pair's log-probabilities are summed to,
    a reward model is trained and read, and
    a policy learns to stop.

What a template writes behind that token is no part of an answer, since no model ever writes it:
ChatML's newline after <|im_end|>, Zephyr's after </s>, Gemma's after <end_of_turn>, Phi's end of
text after <|end|>.

1. A template may end no turn, and begin the next one with a token that sampling stops at (GLM's
   <|user|>): then this is the answer's end token, and it is put behind the last answer of a
   conversation, where no turn follows.
2. A template may have no such token at all ("User: …\nBot: …\n"): then the answer is all that its
   turn holds, and the first of `stop_ids`, the tokenizer's end-of-sequence, is put behind the last.
3. An answer that was cut off by its length has no end token. It ends with its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plinth.shared.errors import InvalidArgument

_MERGED = 1  # token at the end of a prompt


@dataclass(frozen=True)
class Span:
    """ids[begin:end] of a conversation are an answer, its end token included if it `ended`."""

    begin: int
    end: int
    ended: bool

    @property
    def last(self) -> int:
        """The position at which a reward model is read."""
        return self.end - 1


def answer_end(ids: Sequence[int], begin: int, limit: int, stop_ids: Sequence[int]) -> Span:
    """The answer that begins at `begin`, whose turn, by the template, ends before `limit`.

    `ids` may go on behind it. Where its turn has no end token, the next turn's first token is one
    if sampling stops at it (see 1).
    """
    for at in range(begin, limit):
        if ids[at] in stop_ids:
            return Span(begin, at + 1, True)
    if limit < len(ids) and ids[limit] in stop_ids:
        return Span(begin, limit + 1, True)
    return Span(begin, limit, False)


def answer_spans(
    ids: Sequence[int],
    turns: Sequence[tuple[Sequence[int], Sequence[int]]],
    stop_ids: Sequence[int],
    *,
    cut_off: bool = False,
) -> tuple[list[int], list[Span]]:
    """(ids up to the end of the last answer, the answers' spans in them).

    ids: a whole conversation. turns, for each answer: (its prompt with the turn opened, all up to
    the answer and what the template writes behind it). stop_ids: ids that end a turn, the
    template's own first. cut_off: the last answer was ended by its length.

    An answer that begins with white space may merge with the last token of its prompt; the merged
    token is the answer's. Raises InvalidArgument where the template writes earlier turns in another
    way once a later one is there: what a model would have written then can't be told.
    """
    spans = [_span(ids, prompt, upto, stop_ids) for prompt, upto in turns]
    if not spans:
        return list(ids), spans
    last = spans[-1]
    if cut_off:
        spans[-1] = Span(last.begin, last.end - last.ended, False)
    elif not last.ended and last.end == len(ids) and stop_ids:
        spans[-1] = Span(last.begin, last.end + 1, True)
        return [*ids, stop_ids[0]], spans
    return list(ids[: spans[-1].end]), spans


def _span(
    ids: Sequence[int], prompt: Sequence[int], upto: Sequence[int], stop_ids: Sequence[int]
) -> Span:
    limit = _common(ids, upto)
    begin = _common(ids, prompt)
    if len(prompt) - begin <= _MERGED and begin <= limit:
        span = answer_end(ids, begin, limit, stop_ids)
        # Behind the end token a template may say that the conversation ends there (Phi's).
        if span.ended or limit == len(upto):
            return span
    raise InvalidArgument(
        "the chat template changes earlier turns when a later one is added, so the "
        "assistant's tokens cannot be told apart; use a template that only appends"
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])
