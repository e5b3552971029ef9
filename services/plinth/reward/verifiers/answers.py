"""Answers that are right or wrong: equal to the item's reference, as text or as a number.

Where the answer stands in the text: the last number (as GSM8K's scoring has it, Cobbe et al. 2021,
but the whole of it: `numbers`), the last \\boxed{…} (MATH, Hendrycks et al. 2021), after a marker
such as "####", the last line, or all of it. Normalisation of text follows MATH's.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plinth.reward.verifiers.contract import Answer, Rule, Tools, Verdict, rule, told
from plinth.reward.verifiers.numbers import last_number, number

Extract = Literal["whole", "last_line", "last_number", "boxed", "after"]
_DROPPED = re.compile(r"\\(?:left|right|!|,|;|:| |\$|%)|\$|\^\{?\\circ\}?|\\mbox|\\text(?=\{)")
_BOXES = ("\\boxed", "\\fbox")


def boxed(text: str) -> str | None:
    """What stands in the last box, with braces that match; None without one."""
    start = max(text.rfind(box) for box in _BOXES)
    if start < 0:
        return None
    begin = text.find("{", start)
    if begin < 0 or text[start:begin].strip() not in _BOXES:
        return None
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return None


def extract(text: str, how: Extract, marker: str) -> str | None:
    """The answer within an answer; None where there is none."""
    if how == "boxed":
        return boxed(text)
    if how == "after":
        _, found, rest = text.rpartition(marker)
        return rest.strip().split("\n")[0] if found and rest.strip() else None
    if how == "last_number":
        return last_number(text)
    if how == "last_line":
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else None
    return text


def normalised(text: str, ignore_case: bool) -> str:
    """What two equal answers have in common."""
    plain = _DROPPED.sub("", text.strip())
    plain = plain.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    plain = re.sub(r"\s+", " ", plain).strip().rstrip(".").strip()
    if plain.startswith("{") and plain.endswith("}") and plain.count("{") == 1:
        plain = plain[1:-1].strip()
    return plain.casefold() if ignore_case else plain


class _Extracting(Rule):
    extract: Extract = "whole"
    marker: str = Field(default="####", min_length=1, max_length=100)

    def _both(self, answer: Answer) -> tuple[str, str] | Verdict:
        """(what was answered, what is right), both taken out in the same way."""
        if answer.reference is None:
            return Verdict(None, "the item has no reference")
        # A reference is often bare already ("72"), where answers are whole solutions.
        right = extract(answer.reference, self.extract, self.marker)
        said = extract(answer.text, self.extract, self.marker)
        if said is None or not said.strip():
            return Verdict(0.0, f"no answer found (looked for: {self.extract})")
        return said, answer.reference if right is None else right


@rule
class ExactAnswer(_Extracting):
    """Equal after normalisation; numbers are equal when their values are."""

    KIND: ClassVar[str] = "exact_answer"
    ignore_case: bool = True
    numbers: bool = True  # "1,000.0" is "1000", and \\frac{1}{2} is 0.5

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        both = self._both(answer)
        if isinstance(both, Verdict):
            return both
        said, right = both
        equal = normalised(said, self.ignore_case) == normalised(right, self.ignore_case)
        if not equal and self.numbers:
            one, other = number(said), number(right)
            equal = one is not None and other is not None and one.equals(other)
        return told(equal, f"{said.strip()[:80]!r} is not {right.strip()[:80]!r}")


@rule
class Number(_Extracting):
    """Within a tolerance of the reference: |x - r| ≤ max(absolute, relative · |r|)."""

    KIND: ClassVar[str] = "number"
    extract: Extract = "last_number"
    absolute: float = Field(default=0.0, ge=0)
    relative: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Number:
        if self.absolute == 0 and self.relative == 0:
            raise ValueError("give absolute or relative, or use 'exact_answer'")
        return self

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        both = self._both(answer)
        if isinstance(both, Verdict):
            return both
        said, right = map(number, both)
        if right is None:
            return Verdict(None, f"the reference {both[1].strip()[:80]!r} is no number")
        if said is None:
            return Verdict(0.0, f"{both[0].strip()[:80]!r} is no number")
        holds = said.equals(right, self.absolute, self.relative)
        return told(holds, f"{both[0].strip()[:40]} is off")
