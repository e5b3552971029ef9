"""Where the answers of a long chat are, in time that grows with its length.

By definition (`shared.answer_spans`) an answer's place follows from two renderings of all that came
before it, so a chat of n answers costs n times itself. Almost every template, though, writes an
exchange (what the user says, and the answers to it) in the same way whatever came before. So each
exchange is rendered by itself, behind a short first one, and taken only if that is proven:

1. The exchanges' ids, one behind another, are the ids of the whole chat, to the last one.
2. For the last answer, and those at a half, a quarter, … of the way, the renderings of all before
   it are what the exchanges say. Their sizes halve, so together they cost what the last one does.

A chat where either fails is rendered as the definition says (`rendering.py`). What this can't see
is a template that writes the same ids for the whole and yet opens some answer's turn otherwise
because of the number of messages before it, and not at those of step 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plinth.shared.answer_spans import Span, answer_spans
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.tokenize import Messages

# A conversation, and whether the answer's turn is open at its end.
Turn = tuple[Messages, bool]
Ids = Sequence[int]

_FEWEST = 4  # exchanges: below that the definition costs no more
_TAIL = 4  # ids that a template may write at the end of a conversation only (Phi's end of text)
_AHEAD = 2 * _TAIL  # ids of what follows that an answer's end may be told by


def answer_turns(messages: Messages, begin: int = 0) -> Iterator[tuple[Turn, Turn]]:
    """For each answer from message `begin` on: its prompt, and all up to its end."""
    for number in range(begin, len(messages)):
        if messages[number][0] == "assistant":
            yield (messages[:number], True), (messages[: number + 1], False)


@dataclass(frozen=True)
class _Local:
    """An exchange behind the short head: messages `begin` … of the chat, from `head` on here."""

    messages: Messages
    begin: int
    head: int

    def turns(self) -> list[tuple[Turn, Turn]]:
        return list(answer_turns(self.messages, self.head))


class LongChat:
    """A chat taken apart; `None` of `of` where it is not long, or never goes from an answer to the
    user's turn."""

    def __init__(self, messages: Messages, cuts: list[int]) -> None:
        """`cuts`: where exchanges begin."""
        self.messages = messages
        self.first = messages[: cuts[0]]
        self.short: Messages = tuple((role, "x") for role, _ in self.first)
        ends = [*cuts[1:], len(messages)]
        self.exchanges = [
            _Local((*self.short, *messages[begin:end]), begin, len(self.short))
            for begin, end in zip(cuts, ends, strict=True)
        ]

    @classmethod
    def of(cls, messages: Messages) -> LongChat | None:
        roles = [role for role, _ in messages]
        cuts = [n for n in range(1, len(roles)) if roles[n - 1 : n + 1] == ["assistant", "user"]]
        return cls(messages, cuts) if len(cuts) >= _FEWEST else None

    def turns(self) -> Iterator[Turn]:
        """All that `spans` needs the ids of."""
        yield self.messages, False
        yield self.first, False
        yield self.short, False
        for local in self.exchanges:
            yield local.messages, False
        for pair in self._answers():
            yield from pair

    def _answers(self) -> Iterator[tuple[Turn, Turn]]:
        yield from answer_turns(self.first)
        for local in self.exchanges:
            yield from local.turns()
        for number in self._looked_at():
            yield next(answer_turns(self.messages[: number + 1], number))

    def _looked_at(self) -> list[int]:
        """The answers of step 2, by their messages."""
        begin = self.exchanges[0].begin
        answers = [n for n, turn in enumerate(self.messages) if turn[0] == "assistant"]
        answers = [number for number in answers if number >= begin]
        found = []
        left = len(answers)
        while left:
            found.append(answers[left - 1])
            left //= 2
        return found

    def spans(self, ids: Mapping[Turn, list[int]], stop_ids: Ids) -> tuple[Ids, list[Span]] | None:
        """What `answer_spans` gives for the whole chat; None where that is not proven."""
        try:
            return self._spans(ids, stop_ids)
        except InvalidArgument:
            return None

    def _spans(self, ids: Mapping[Turn, list[int]], stop_ids: Ids) -> tuple[Ids, list[Span]] | None:
        whole, base, first = (ids[m, False] for m in (self.messages, self.short, self.first))
        shared = _common(base, ids[self.exchanges[0].messages, False])
        base, tail = base[:shared], base[shared:]
        at = len(first) - len(tail)
        if len(tail) > _TAIL or first[at:] != tail or whole[:at] != first[:at]:
            return None
        turns = [(ids[prompt], ids[upto]) for prompt, upto in answer_turns(self.first)]
        kept, spans = answer_spans(whole[: at + _AHEAD], turns, stop_ids)
        places: list[int] = []
        for local in self.exchanges:
            last = local is self.exchanges[-1]
            here = ids[local.messages, False]
            end = len(here) if last else len(here) - len(tail)
            turns = [(ids[prompt], ids[upto]) for prompt, upto in local.turns()]
            told = [here, *(one for pair in turns for one in pair)]
            if any(one[:shared] != base for one in told):
                return None
            size = end - shared
            if here[end:] != ([] if last else tail) or whole[at : at + size] != here[shared:end]:
                return None
            ahead = len(whole) if last else at + size + _AHEAD
            kept, found = answer_spans([*base, *whole[at:ahead]], turns, stop_ids)
            shift = at - shared
            spans += [Span(one.begin + shift, one.end + shift, one.ended) for one in found]
            places.append(at)
            at += size
        if at != len(whole) or not self._as_a_whole(ids, whole, places, shared):
            return None
        if not self.exchanges[-1].turns():  # what nobody answered is not kept
            return whole[: spans[-1].end], spans
        return [*whole[: places[-1]], *kept[shared:]], spans

    def _as_a_whole(
        self, ids: Mapping[Turn, list[int]], whole: Ids, places: Sequence[int], shared: int
    ) -> bool:
        """Step 2. `places`: where the exchanges begin among the ids of the whole."""
        for number in self._looked_at():
            which = max(n for n, local in enumerate(self.exchanges) if local.begin <= number)
            local, at = self.exchanges[which], places[which]
            there = number - local.begin + local.head
            ours = next(answer_turns(self.messages[: number + 1], number))
            theirs = next(answer_turns(local.messages[: there + 1], there))
            for all_before, behind_short in zip(ours, theirs, strict=True):
                told = ids[all_before]
                if told[:at] != whole[:at] or told[at:] != ids[behind_short][shared:]:
                    return False
        return True


def _common(a: Ids, b: Ids) -> int:
    """How many ids both begin with."""
    length = min(len(a), len(b))
    return next((n for n in range(length) if a[n] != b[n]), length)
