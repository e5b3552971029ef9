"""Parts become rewards: each value told, nothing that is not a number ever added up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from plinth.reward.request import Source
from plinth.reward.verifiers import Verdict
from plinth.shared.errors import DataLoss, plain
from plinth.v1 import rewards_pb2 as pb

_MAX_REASON_CHARS = 1000


def combine(sources: Sequence[Source], verdicts: Sequence[Sequence[Verdict]]) -> list[pb.Reward]:
    """verdicts[source][item]. total = Σ weight · clip(scale · raw + shift), summed exactly
    (`math.fsum`); no total where a part has no value.

    DataLoss naming source and item for NaN or infinity.
    """
    rewards = []
    for item, column in enumerate(zip(*verdicts, strict=True)):
        parts = [
            _part(source, verdict, item) for source, verdict in zip(sources, column, strict=True)
        ]
        reward = pb.Reward(parts=parts)
        if all(part.HasField("value") for part in parts):
            terms = [part.weight * part.value for part in parts]
            reward.total = _checked(_sum(terms), "the total", item)
        rewards.append(reward)
    return rewards


def _part(source: Source, verdict: Verdict, item: int) -> pb.RewardPart:
    part = pb.RewardPart(source=source.name, weight=source.weight, reason=_told(verdict.reason))
    if verdict.value is not None:
        where = f"source {source.name!r}"
        part.raw = _checked(verdict.value, where, item, source.name)
        part.value = _checked(source.value(verdict.value), where, item, source.name)
    return part


def _told(reason: str) -> str:
    """What a rule says may quote an answer's program, which writes what it likes."""
    return plain(reason, _MAX_REASON_CHARS)


def _checked(value: float, where: str, item: int, source: str = "") -> float:
    if math.isfinite(value):
        return value
    raise DataLoss(
        f"{where} gives {value} for item {item}; a reward must be a finite number",
        reason="REWARD_NOT_FINITE",
        field=f"items.{item}",
        metadata={"source": source, "item": str(item)},
    )


def _sum(terms: Sequence[float]) -> float:
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # beyond a double, or infinities of both signs
        return math.nan
