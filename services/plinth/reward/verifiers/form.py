"""The form of an answer: letters, commas, bullets, how it begins and ends, JSON."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from plinth.reward.verifiers.contract import Answer, TextRule, Verdict, rule, told
from plinth.shared.answer_form import first_capital, json_value

_COMMAS = re.compile("[,\uff0c\u060c\u3001]")  # Latin, fullwidth, Arabic, ideographic
_BULLET = re.compile(r"[ \t]*[-*+\u2022\u2013][ \t]+\S")


@rule
class LowerCase(TextRule):
    """No capital letter."""

    KIND: ClassVar[str] = "lower_case"

    def look(self, answer: Answer) -> Verdict:
        capital = first_capital(answer.text)
        return told(not capital, f"it has the capital {capital!r}")


@rule
class NoCommas(TextRule):
    """No comma, of any script."""

    KIND: ClassVar[str] = "no_commas"

    def look(self, answer: Answer) -> Verdict:
        return told(not _COMMAS.search(answer.text), "it has a comma")


@rule
class Bullets(TextRule):
    """Lines that begin with - * + or a bullet: exactly n, or within bounds."""

    KIND: ClassVar[str] = "bullets"
    n: int | None = Field(default=None, ge=0)
    at_least: int | None = Field(default=None, ge=0)
    at_most: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> Bullets:
        bounds = (self.at_least, self.at_most)
        if (self.n is None) == (bounds == (None, None)):
            raise ValueError("give n, or at_least and at_most")
        if None not in bounds and bounds[0] > bounds[1]:  # type: ignore[operator]
            raise ValueError("at_least is above at_most, so nothing could pass")
        return self

    def look(self, answer: Answer) -> Verdict:
        count = sum(_BULLET.match(line) is not None for line in answer.text.splitlines())
        if self.n is not None:
            return told(count == self.n, f"{count} bullets, {self.n} were asked for")
        low, high = self.at_least or 0, self.at_most
        holds = low <= count and (high is None or count <= high)
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        return told(holds, f"{count} bullets, {wanted} were asked for")


class _Edge(TextRule):
    text: str = Field(min_length=1, max_length=2000)
    ignore_case: bool = False

    def _pair(self, answer: Answer) -> tuple[str, str]:
        said, wanted = answer.text.strip(), self.text.strip()
        return (said.casefold(), wanted.casefold()) if self.ignore_case else (said, wanted)


@rule
class StartsWith(_Edge):
    """Begins so, white space aside."""

    KIND: ClassVar[str] = "starts_with"

    def look(self, answer: Answer) -> Verdict:
        said, wanted = self._pair(answer)
        return told(said.startswith(wanted), f"it begins {answer.text.strip()[:40]!r}")


@rule
class EndsWith(_Edge):
    """Ends so, white space aside."""

    KIND: ClassVar[str] = "ends_with"

    def look(self, answer: Answer) -> Verdict:
        said, wanted = self._pair(answer)
        return told(said.endswith(wanted), f"it ends {answer.text.strip()[-40:]!r}")


@rule
class IsJson(TextRule):
    """The whole answer is one JSON value. NaN and Infinity are not JSON (RFC 8259)."""

    KIND: ClassVar[str] = "json"
    type: Literal["any", "object", "array"] = "any"
    required: tuple[str, ...] = Field(default=(), max_length=100)  # keys of the object
    fenced: bool = True  # a ``` block around it is let pass

    @model_validator(mode="after")
    def _keys_of_an_object(self) -> IsJson:
        if self.required and self.type == "array":
            raise ValueError("required keys need an object, not an array")
        return self

    def look(self, answer: Answer) -> Verdict:
        try:
            value = json_value(answer.text, fenced=self.fenced)
        except ValueError as error:
            return Verdict(0.0, f"no JSON: {error}"[:200])
        if (self.type == "object" or self.required) and not isinstance(value, dict):
            return Verdict(0.0, f"JSON, but a {value.__class__.__name__} and no object")
        if self.type == "array" and not isinstance(value, list):
            return Verdict(0.0, f"JSON, but a {value.__class__.__name__} and no array")
        missing = [key for key in self.required if key not in value]
        return told(not missing, f"the object lacks {', '.join(missing)}"[:200])
