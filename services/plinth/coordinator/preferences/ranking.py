"""Rankings with ties: what is one, and what it says of each pair.

A ranking is a list of tiers, best first; responses of one tier are equally good. A choice between
two, a best of k and a full order are all rankings: [[a], [b]], [[best], [the rest]], [[a], [b],
[c], …]. "All bad" is no ranking: it says nothing of any pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import InvalidArgument
from plinth.v1 import preferences_pb2 as pb

MAX_REASON_CHARS = 4000
# What a judgement says of a pair (i, j): i is worse, equal, better.
WORSE, TIE, BETTER = -1, 0, 1


def check_judgement(
    ranking: Sequence[pb.ResponseTier],
    all_bad: bool,
    reason: str,
    responses: Sequence[str],
    within: str = "",
) -> None:
    """InvalidArgument unless it is a ranking of exactly these responses, or says "all bad".
    within: what the names of fields begin with."""
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidArgument(
            f"{within}reason: {len(reason)} characters, at most {MAX_REASON_CHARS}",
            field=f"{within}reason",
        )
    if all_bad and ranking:
        raise InvalidArgument(
            f"{within}all_bad: give either a ranking or all_bad, not both",
            reason="RANKING_AND_ALL_BAD",
            field=f"{within}all_bad",
        )
    if not all_bad:
        check_ranking(ranking, responses, f"{within}ranking")


def check_ranking(ranking: Sequence[pb.ResponseTier], responses: Sequence[str], field: str) -> None:
    """InvalidArgument unless each of `responses` stands in it exactly once."""
    known = ", ".join(responses)
    seen: set[str] = set()
    for index, tier in enumerate(ranking):
        where = f"{field}.{index}"
        if not tier.response_ids:
            raise InvalidArgument(
                f"{where}: an empty tier", reason="RANKING_EMPTY_TIER", field=where
            )
        for one in tier.response_ids:
            if one not in responses:
                raise InvalidArgument(
                    f"{where}: {one[:80]!r} is no response of this task; there is {known}",
                    reason="RANKING_UNKNOWN_RESPONSE",
                    field=where,
                )
            if one in seen:
                raise InvalidArgument(
                    f"{where}: response {one!r} is ranked twice",
                    reason="RANKING_DUPLICATE_RESPONSE",
                    field=where,
                )
            seen.add(one)
    missing = [one for one in responses if one not in seen]
    if missing:
        raise InvalidArgument(
            f"{field}: {', '.join(missing)} not ranked; every response needs a place (those that "
            "are equally good share a tier)",
            reason="RANKING_MISSING_RESPONSE",
            field=field,
        )


def places(ranking: Sequence[pb.ResponseTier]) -> dict[str, int]:
    """Response id → number of its tier, 0 the best."""
    return {one: place for place, tier in enumerate(ranking) for one in tier.response_ids}


def outcomes(judgement: rec.JudgementRecord) -> Iterator[tuple[str, str, int]]:
    """(i, j, WORSE, TIE or BETTER) for each pair, ids in alphabetical order: the orientation is
    the same for every judge. Nothing when all are bad."""
    place = places(judgement.ranking)
    for first, second in combinations(sorted(place), 2):
        difference = place[second] - place[first]
        yield first, second, (difference > 0) - (difference < 0)


def tiers(order: Sequence[Sequence[str]]) -> list[pb.ResponseTier]:
    """As the protocol says it."""
    return [pb.ResponseTier(response_ids=tier) for tier in order]
