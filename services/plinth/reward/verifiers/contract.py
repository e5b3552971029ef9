"""What a verifiable reward is: a frozen config that judges one answer, found by its kind.

A plug-in is a subclass of `Rule` with a `kind`, registered by `@rule`. Another distribution brings
its own by the entry point group "plinth.rewards"; naming the module is enough.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from plinth.reward.sandbox.runner import Limits, SandboxOutcome
from plinth.shared.errors import InvalidArgument
from plinth.shared.reward_plugins import ENTRY_POINTS

MAX_RULE_BYTES = 64 << 10


@dataclass(frozen=True)
class Verdict:
    """`value` in [0, 1]; None: it can't be scored, and `reason` says why."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """One answer with what the item says of it. tokens: how many, None where nobody knows."""

    text: str
    tokens: int | None = None
    reference: str | None = None
    tests: tuple[str, ...] = ()
    checks: tuple[Rule, ...] = ()


class Tools(Protocol):
    """What rules can't do by themselves without danger."""

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        """Whether it matches; or why that can't be told."""
        ...

    async def run_tests(
        self, code: str, tests: Sequence[str], limits: Limits, *, setup: str, candidate: str
    ) -> SandboxOutcome:
        """Of Python code, locked in. FailedPrecondition where that can't be done."""
        ...


class Rule(BaseModel):
    """Unknown options are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    KIND: ClassVar[str] = ""
    # "tokens": it counts the answer's tokens.
    NEEDS: ClassVar[frozenset[str]] = frozenset()

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        raise NotImplementedError


class TextRule(Rule):
    """Judges the text alone. An answer that says nothing keeps no rule, unless it may."""

    allow_empty: bool = False

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        if not self.allow_empty and not answer.text.strip():
            return Verdict(0.0, "the answer is empty")
        return self.look(answer)

    def look(self, answer: Answer) -> Verdict:
        raise NotImplementedError


def told(holds: bool, why: str) -> Verdict:
    """1, or 0 and why."""
    return Verdict(1.0) if holds else Verdict(0.0, why)


_RULES: dict[str, type[Rule]] = {}
R = TypeVar("R", bound=type["Rule"])


def rule(made: R) -> R:
    """Registers a class under its KIND; two of one kind are a mistake."""
    if not made.KIND or _RULES.get(made.KIND, made) is not made:
        raise ValueError(f"{made.__name__}: KIND {made.KIND!r} is empty or taken")
    _RULES[made.KIND] = made
    return made


def kinds() -> list[str]:
    """Every kind that is known here."""
    return sorted(_RULES)


def load_plugins() -> None:
    """Imports what other distributions bring."""
    for point in entry_points(group=ENTRY_POINTS):
        point.load()


def parse_rule(raw: Any, where: str) -> Rule:
    """{"kind": …, options} as a rule. InvalidArgument says what is wrong where."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("kind"), str):
        raise InvalidArgument(
            f"{where}: a rule is an object with its 'kind', such as "
            '{"kind": "max_words", "n": 30}',
            field=where,
        )
    kind = raw["kind"]
    if kind not in _RULES:
        near = difflib.get_close_matches(kind, kinds(), n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise InvalidArgument(
            f"{where}: kind {kind[:80]!r} is unknown{hint}. Known are {', '.join(kinds())}",
            reason="RULE_UNKNOWN",
            field=where,
        )
    options = {name: value for name, value in raw.items() if name != "kind"}
    try:
        return _RULES[kind].model_validate(options)
    except ValidationError as error:
        raise _explained(error, kind, where) from None


def _explained(error: ValidationError, kind: str, where: str) -> InvalidArgument:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        said = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = ", ".join(_RULES[kind].model_fields)
            said = f"no option of {kind!r}; it has {known}"
        lines.append(f"{where}.{name}: {said}" if name else f"{where}: {said}")
    return InvalidArgument("; ".join(lines), reason="RULE_INVALID", field=where)
