"""What must or must not stand in an answer."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from plinth.reward.verifiers.contract import Answer, Rule, TextRule, Tools, Verdict, rule, told
from plinth.shared.answer_form import phrases_in

MAX_PATTERN = 2000


@rule
class Regex(Rule):
    """Whether a pattern of Python's `re` is found, or (`full`) is all of the answer.

    An answer on which matching takes too long does not match: what blew up is its own text.
    """

    KIND: ClassVar[str] = "regex"
    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    full: bool = False
    absent: bool = False  # 1 where it does not match
    ignore_case: bool = False
    multi_line: bool = False
    dot_all: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(f"no pattern of Python's re: {error}") from None
        return value

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        flags = 0
        for wanted, flag in (
            (self.ignore_case, re.IGNORECASE),
            (self.multi_line, re.MULTILINE),
            (self.dot_all, re.DOTALL),
        ):
            flags |= flag if wanted else 0
        found = await tools.match(self.pattern, int(flags), self.full, answer.text)
        if isinstance(found, str):
            return Verdict(0.0, found)
        return told(found != self.absent, "it matches" if found else "it doesn't match")


@rule
class Contains(TextRule):
    """Whether phrases stand in it: all of them, any, or none."""

    KIND: ClassVar[str] = "contains"
    phrases: tuple[str, ...] = Field(min_length=1, max_length=100)
    which: Literal["all", "any", "none"] = "all"
    ignore_case: bool = True

    @field_validator("phrases")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(0 < len(phrase) <= MAX_PATTERN for phrase in value):
            raise ValueError(f"each phrase has 1 to {MAX_PATTERN} characters")
        return value

    def look(self, answer: Answer) -> Verdict:
        found = phrases_in(answer.text, self.phrases, ignore_case=self.ignore_case)
        if self.which == "none":
            return told(not found, f"it has {found[:3]}")
        if self.which == "any":
            return told(bool(found), "it has none of the phrases")
        missing = [phrase for phrase in self.phrases if phrase not in found]
        return told(not missing, f"it lacks {missing[:3]}")
