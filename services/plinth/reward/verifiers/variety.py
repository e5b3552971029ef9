"""Whether an answer goes on saying new things."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from plinth.reward.verifiers.contract import Answer, TextRule, Verdict, rule, told
from plinth.shared.answer_form import distinct_trigrams


@rule
class DistinctTrigrams(TextRule):
    """The share of distinct word trigrams, case ignored; with `at_least`, whether it is reached."""

    KIND: ClassVar[str] = "distinct_trigrams"
    at_least: float | None = Field(default=None, ge=0, le=1)

    def look(self, answer: Answer) -> Verdict:
        share = distinct_trigrams([answer.text])
        if self.at_least is None:
            return Verdict(share)
        return told(share >= self.at_least, f"{share:.2f} of its trigrams are distinct")
