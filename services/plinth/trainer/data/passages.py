"""Chats and preference pairs made of plain text: a passage is to be gone on with.

Whoever trains on text of their own has seldom questions and answers about it. So of each paragraph
the first sentence is asked to be gone on with, and what follows there is the answer; for a pair it
is preferred to what a rule made worse of it. A paragraph of which that makes no exchange (a
heading, a table, code, one sentence) is left out, and said.

A passage stays on the side of its text: what is held out of a corpus is held out of its passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.trainer.data.documents import Document
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.worse_answers import made_worse

PASSAGES = ("chats", "pairs")  # what they are made into
_ASK = "Go on: {sentence}"
_BLANK = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ASKED = (16, 240)  # characters
_ANSWER = (24, 480)
_PROSE = 0.8  # share of letters and spaces, from which on a paragraph is prose


class Passages:
    """Told the documents of both sides in turn, first what is learned from."""

    def __init__(self, into: str) -> None:
        """`into`: one of PASSAGES. `intake` counts paragraphs."""
        self._into = into
        self._asked: dict[str, str] = {}  # question, as it is compared, to the side that has it
        self.intake = Intake("paragraphs")

    def of(self, documents: Iterable[Document], side: str) -> Iterator[Document]:
        """The exchanges of one side. InvalidArgument: the corpus holds no plain text."""
        for document in documents:
            if document.form != "text":
                form = FORMS[document.form]
                raise InvalidArgument(
                    f"passages are made of plain text, and the corpus holds {form.called}",
                    field="spec.prepare.corpus",
                )
            before = ""
            for paragraph in _BLANK.split(document.text):
                if not paragraph.strip():
                    continue
                found = _exchange(" ".join(paragraph.split()))
                why = "of no two sentences of prose" if found is None else self._known(found, side)
                if found is None or why:
                    self.intake.leave_out(why)
                    continue
                self.intake.taken += 1
                question, answer = found
                yield from self._made(question, answer, before)
                before = answer

    def _known(self, exchange: tuple[str, str], side: str) -> str:
        """Why it is left out: what is asked twice would be asked on both sides."""
        first = self._asked.setdefault(exchange[0].casefold(), side)
        return "" if first == side else "asked in what is learned from, too"

    def _made(self, question: str, answer: str, before: str) -> Iterator[Document]:
        messages = (("user", _ASK.format(sentence=question)), ("assistant", answer))
        if self._into == "chats":
            yield Document(messages=messages)
            return
        rule, worse = made_worse(answer, before)
        if worse and worse != answer:
            yield Document(messages=messages, rejected=worse, source=f"rule:{rule}")


def _exchange(paragraph: str) -> tuple[str, str] | None:
    """(the first sentence, those after it as far as an answer goes), of unwrapped text."""
    if sum(c.isalpha() or c == " " for c in paragraph) < _PROSE * len(paragraph):
        return None
    first, *others = _SENTENCE_END.split(paragraph)
    answer = ""
    for sentence in others:
        if len(answer) + len(sentence) + 1 > _ANSWER[1]:
            break
        answer = f"{answer} {sentence}".strip()
    if not _ASKED[0] <= len(first) <= _ASKED[1] or len(answer) < _ANSWER[0]:
        return None
    return first, answer
