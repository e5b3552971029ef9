"""How long an answer may be: in words, characters or tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plinth.reward.verifiers.contract import Answer, Rule, TextRule, Tools, Verdict, rule, told
from plinth.shared.answer_form import word_count

_COUNT = Field(ge=0, le=10_000_000)


@rule
class Length(Rule):
    """Within bounds: 1 or 0. With `target`: 1 at it, falling by 1/`slack` per unit, to 0."""

    KIND: ClassVar[str] = "length"

    unit: Literal["words", "chars", "tokens"] = "words"
    at_least: int | None = Field(default=None, ge=0)
    at_most: int | None = Field(default=None, ge=0)
    target: int | None = Field(default=None, ge=0)
    slack: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _some(self) -> Length:
        if self.at_least is None and self.at_most is None and self.target is None:
            raise ValueError("give at_least, at_most or target")
        if None not in (self.at_least, self.at_most) and self.at_least > self.at_most:  # type: ignore[operator]
            raise ValueError("at_least is above at_most, so nothing could pass")
        if self.slack is not None and self.target is None:
            raise ValueError("slack belongs to a target")
        return self

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        count = answer.tokens
        if self.unit != "tokens":
            count = word_count(answer.text) if self.unit == "words" else len(answer.text)
        if count is None:
            return Verdict(None, "the answer came as text, so its tokens aren't known")
        if self.at_least is not None and count < self.at_least:
            return Verdict(0.0, f"{count} {self.unit}, must be at least {self.at_least}")
        if self.at_most is not None and count > self.at_most:
            return Verdict(0.0, f"{count} {self.unit}, must be at most {self.at_most}")
        if self.target is None:
            return Verdict(1.0)
        slack = self.slack or max(1.0, float(self.target))
        value = max(0.0, 1.0 - abs(count - self.target) / slack)
        return Verdict(value, "" if value == 1 else f"{count} {self.unit}, best is {self.target}")


@rule
class MaxWords(TextRule):
    """At most n words."""

    KIND: ClassVar[str] = "max_words"
    n: int = _COUNT

    def look(self, answer: Answer) -> Verdict:
        count = word_count(answer.text)
        return told(count <= self.n, f"{count} words, at most {self.n} were asked for")


@rule
class MinWords(TextRule):
    """At least n words."""

    KIND: ClassVar[str] = "min_words"
    n: int = _COUNT

    def look(self, answer: Answer) -> Verdict:
        count = word_count(answer.text)
        return told(count >= self.n, f"{count} words, at least {self.n} were asked for")
