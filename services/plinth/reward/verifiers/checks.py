"""The item's own rules, as one reward."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Literal

from plinth.reward.verifiers.contract import Answer, Rule, Tools, Verdict, rule


@rule
class Checks(Rule):
    """What an item's `checks` ask for: all of it ("all": 1 or 0), or the mean ("share")."""

    KIND: ClassVar[str] = "checks"
    mode: Literal["all", "share"] = "all"

    async def judge(self, answer: Answer, tools: Tools) -> Verdict:
        if not answer.checks:
            return Verdict(None, "the item has no checks")
        verdicts = await asyncio.gather(*(check.judge(answer, tools) for check in answer.checks))
        told, values = [], []
        for check, verdict in zip(answer.checks, verdicts, strict=True):
            if verdict.value is None:
                return Verdict(None, f"{check.KIND}: {verdict.reason}")
            values.append(verdict.value)
            if verdict.value < 1:
                told.append(f"{check.KIND}: {verdict.reason}")
        value = sum(values) / len(values)
        if self.mode == "all":
            value = float(min(values) == 1)
        return Verdict(value, "; ".join(told)[:1000])
