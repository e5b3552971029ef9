"""Chats and preference pairs made of plain text: a passage is to be gone on with.

Whoever trains on text of their own has seldom questions and answers about it. So of each paragraph
the first sentence is asked to be gone on with, and what follows there is the answer; for a pair it
is preferred to what a rule made worse of it. A paragraph of which that makes no exchange (a
heading, a table, code, one sentence) is left out, and said.

A passage stays on the side of its text: what is held out of a corpus is held out of its passages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.trainer.data.documents import Document
from plinth.trainer.data.forms import FORMS
from plinth.trainer.data.worse_answers import made_worse

PASSAGES = ("chats", "pairs")  # what they are made into
_ASK = "Go on: {sentence}"
_BLANK = re.compile(r"\n\s*\n")
# Scripts without spaces have none between sentences either.
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[\u3002\uff01\uff1f])(?![\u3002\uff01\uff1f\u300d\u300f\u201d])\s*"
)
# At least so many bytes of UTF-8 (what says as much has fewer characters in Chinese), and at most
# so many characters.
_ASKED = (16, 240)
_ANSWER = (24, 480)
_PROSE = 0.8  # share of letters, their marks and spaces, from which on a paragraph is prose


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
                question, answer = found
                made, before = self._made(question, answer, before), answer
                if made is None:
                    self.intake.leave_out("that no rule makes worse")
                    continue
                self.intake.taken += 1
                yield made

    def _known(self, exchange: tuple[str, str], side: str) -> str:
        """Why it is left out: what is asked twice would be asked on both sides."""
        first = self._asked.setdefault(exchange[0].casefold(), side)
        return "" if first == side else "asked in what is learned from, too"

    def _made(self, question: str, answer: str, before: str) -> Document | None:
        messages = (("user", _ASK.format(sentence=question)), ("assistant", answer))
        if self._into == "chats":
            return Document(messages=messages)
        rule, worse = made_worse(answer, before)
        if not worse or worse == answer:
            return None
        return Document(messages=messages, rejected=worse, source=f"rule:{rule}")


def needed() -> str:
    """What a paragraph must have, for people."""
    return (
        f"a paragraph of prose with two sentences or more, the first of {_ASKED[0]} to {_ASKED[1]} "
        f"characters, and of those behind it {_ANSWER[0]} to {_ANSWER[1]}"
    )


def _exchange(paragraph: str) -> tuple[str, str] | None:
    """(the first sentence, those after it as far as an answer goes), of unwrapped text."""
    prose = sum(c == " " or unicodedata.category(c)[0] in "LM" for c in paragraph)
    ends = list(_SENTENCE_END.finditer(paragraph))
    if prose < _PROSE * len(paragraph) or not ends:
        return None
    first, begin = paragraph[: ends[0].start()], ends[0].end()
    others = [*(end.start() for end in ends[1:]), len(paragraph)]
    end = max((end for end in others if end - begin <= _ANSWER[1]), default=begin)
    answer = paragraph[begin:end]
    for text, (least, most) in ((first, _ASKED), (answer, _ANSWER)):
        if len(text) > most or len(text.encode()) < least:
            return None
    return first, answer
