"""Python code that must pass the item's tests, run where it can do no harm (`reward.sandbox`)."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from plinth.reward.sandbox.runner import Limits
from plinth.reward.verifiers.contract import Answer, Rule, Tools, Verdict, rule

MAX_CODE = 64 << 10
_START_S = 5.0
_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(text: str) -> str:
    """The fenced blocks, one after the other; without any, the whole text."""
    blocks = _FENCED.findall(text)
    return "\n".join(blocks) if blocks else text


@rule
class CodeTests(Rule):
    """1 when all tests pass (`mode` "share": the share that pass).

    A test is Python statements. Names that tests and setup don't define are functions of the
    answer; they take and give plain values (numbers, text, bytes, lists, tuples, sets,
    dictionaries). Changes to arguments in place are not seen, and classes can't be passed.
    """

    KIND: ClassVar[str] = "code_tests"
    mode: Literal["all", "share"] = "all"
    setup: str = Field(default="", max_length=MAX_CODE)
    # A function of the answer that tests know as `candidate`, as HumanEval's do.
    entry_point: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,99})?$")
    # Processor time of the tests, and of the answer under them. Wall time ends only what sleeps,
    # at twice that and some, so that a busy machine changes no verdict.
    seconds: int = Field(default=10, ge=1, le=60)
    memory_mb: int = Field(default=512, ge=64, le=4096)  # address space of each process

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        if not answer.tests:
            return Verdict(None, "the item has no tests")
        code = code_of(answer.text)
        if len(code) > MAX_CODE:
            return Verdict(0.0, f"{len(code)} characters of code; at most {MAX_CODE} are run")
        limits = Limits(2.0 * self.seconds + _START_S, self.seconds, self.memory_mb << 20)
        done = await tools.run_tests(
            code, answer.tests, limits, setup=self.setup, candidate=self.entry_point
        )
        value = done.passed / done.total
        if self.mode == "all":
            value = float(done.passed == done.total)
        why = f"{done.passed} of {done.total} tests pass; {done.why}" if done.why else ""
        return Verdict(value, why)
