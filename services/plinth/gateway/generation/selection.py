"""What a client may ask of a choice among several answers, checked.

`best_of` is OpenAI's: so many answers are made, and the `n` best of them returned. `select` is our
own: what makes one answer better than another. The official client sends it as `extra_body`.

    {"by": "likelihood"}                                        the default, as at OpenAI
    {"by": "reward", "reward": "judge:prod", "rules": [{"rule": {"kind": "max_words", "n": 30}}]}
    {"by": "vote", "pattern": "answer is (.+)", "weights": "likelihood"}

Knows neither who scores nor how a choice is made; see `chooser.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.gateway import limits
from plinth.shared.api.structs import struct_of
from plinth.shared.errors import InvalidArgument
from plinth.v1 import rewards_pb2

MODEL_SOURCE = "reward"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class WeightedRule(_Strict):
    """A rule of the reward stage ({"kind": …, options}), and how much it counts."""

    rule: dict[str, Any]
    weight: float = Field(default=1, ge=-1e6, le=1e6)


class Select(_Strict):
    """What makes an answer the better one.

    "likelihood": its mean log-probability per token, the model's own, before temperature.
    "reward": the sum of a reward model's score and of rules, each by its weight.
    "vote": how many others give the same answer (self-consistency; Wang et al. 2023). `pattern`
    finds the answer: what its first group holds in the last match in which it holds anything.
    `weights` says how much each voice counts; "likelihood" and "reward" by a softmax over the
    request's answers (`plinth.algos.selection.softmax`).
    """

    by: Literal["likelihood", "reward", "vote"]
    reward: str | None = Field(default=None, min_length=1, max_length=256)
    rules: list[WeightedRule] | None = Field(
        default=None, min_length=1, max_length=limits.MAX_SELECT_RULES, fail_fast=True
    )
    pattern: str | None = Field(default=None, min_length=1, max_length=limits.MAX_PATTERN_CHARS)
    weights: Literal["equal", "likelihood", "reward"] | None = None

    @property
    def scored(self) -> bool:
        """Whether the reward stage is asked."""
        return self.by == "reward" or self.weights == "reward"

    def check(self) -> None:
        """InvalidArgument for a field that is missing, or would mean nothing."""
        if self.by == "vote" and self.pattern is None:
            raise _wrong("pattern", "a vote needs a pattern whose first group is the answer")
        if self.by != "vote":
            for name in ("pattern", "weights"):
                if getattr(self, name) is not None:
                    raise _wrong(name, f'is for {{"by": "vote"}}, not for {self.by!r}')
        given = self.reward is not None or self.rules is not None
        if self.scored and not given:
            raise _wrong("reward", "name a reward model, or give rules")
        if given and not self.scored:
            name = "rules" if self.reward is None else "reward"
            raise _wrong(name, 'is for {"by": "reward"}, and for a vote with weights "reward"')

    def sources(self) -> list[rewards_pb2.RewardSource]:
        """As the reward stage takes them: the rules in order, then the model. InvalidArgument for
        a rule that can't be said."""
        sources = []
        for number, one in enumerate(self.rules or ()):
            name = f"rules.{number}"
            rule = struct_of(one.rule, f"select.{name}.rule")
            sources.append(rewards_pb2.RewardSource(name=name, weight=one.weight, rule=rule))
        if self.reward is not None:
            sources.append(rewards_pb2.RewardSource(name=MODEL_SOURCE, model=self.reward))
        return sources


@dataclass(frozen=True)
class Selection:
    """`keep` of the answers to each prompt go to the client."""

    keep: int
    select: Select


LIKELIHOOD = Select(by="likelihood")


def selection_of(
    best_of: int | None, n: int, select: Select | None, *, stream: bool
) -> Selection | None:
    """None where there is nothing to choose. InvalidArgument for what does not go together."""
    if best_of is None:
        if select is not None:
            raise _wrong("", "needs best_of: how many answers there are to choose from")
        return None
    if best_of < n:
        raise InvalidArgument(
            f"best_of: {best_of} answers can't give the {n} that n asks for; best_of must be at "
            "least n",
            reason="INVALID_BEST_OF",
            field="best_of",
        )
    if best_of == 1 and select is None:
        return None
    if stream:
        raise InvalidArgument(
            "stream: the answers of best_of are compared when all are complete, so they can't be "
            "streamed",
            reason="BEST_OF_STREAM",
            field="stream",
        )
    if select is not None:
        select.check()
    return Selection(n, select or LIKELIHOOD)


def _wrong(name: str, what: str) -> InvalidArgument:
    field = f"select.{name}" if name else "select"
    return InvalidArgument(f"{field}: {what}", reason="INVALID_SELECT", field=field)
