"""What answers are worth, as a pipeline says it: rules by name, and a reward model beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plinth.shared.api.structs import struct_of
from plinth.shared.store import ArtifactRecord
from plinth.v1 import rewards_pb2


class WeightedRule(BaseModel):
    """One opinion on an answer; see `RewardSource` in rewards.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: dict[str, Any]
    weight: float = Field(default=1, ge=-1e6, le=1e6)


# Unless the spec says otherwise an answer is worth 1 if it passes its prompt's checks, else 0.
CHECKS: Mapping[str, WeightedRule] = {"checks": WeightedRule(rule={"kind": "checks"})}


def sources_of(
    rules: Mapping[str, WeightedRule], model: ArtifactRecord | None = None, weight: float = 1.0
) -> list[rewards_pb2.RewardSource]:
    """As the reward stage takes them. InvalidArgument for a rule that it could not be told."""
    sources = [
        rewards_pb2.RewardSource(
            name=name, weight=one.weight, rule=struct_of(one.rule, f"rewards.{name}.rule")
        )
        for name, one in rules.items()
    ]
    if model is not None:
        sources.append(rewards_pb2.RewardSource(name="reward", weight=weight, model=model.ref))
    return sources
