"""Which of several complete answers to one prompt a client gets, best first.

By their likelihood, by the reward stage's scores, or by a vote. What is known before anything is
generated is checked then: nobody pays for answers that can't be compared. A client's pattern runs
in a process of its own, with so much processor time for all answers of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plinth.algos.selection import Vote, votes
from plinth.gateway.generation.answer_scores import Answer, Rewards, Scores, likelihoods, text_of
from plinth.gateway.generation.generator import Prepared, Prompt
from plinth.gateway.generation.selection import Select, Selection
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.identity import Principal
from plinth.shared.matching import Matcher
from plinth.shared.rpc.client import StageClients

_SHOWN = 80


@dataclass(frozen=True)
class Chosen:
    """sample: its number among those of its prompt. note: what it was chosen by, JSON-ready."""

    sample: int
    note: dict[str, Any]


class Chooser:
    """One per gateway."""

    def __init__(self, clients: StageClients, *, patience_s: float, pattern_s: float) -> None:
        """patience_s: how long to wait for the reward stage; pattern_s: of processor time."""
        self._rewards = Rewards(clients, patience_s)
        self._matcher = Matcher(pattern_s)

    async def close(self) -> None:
        """Ends the process of patterns."""
        await self._matcher.close()

    async def check(self, principal: Principal, selection: Selection) -> None:
        """Raises what would be wrong with any answers: a pattern, a rule, a reward model that is
        not there, a key without the scope "rewards", a reward stage that is away."""
        select = selection.select
        if select.pattern is not None:
            await self._found(select.pattern, [])
        if select.scored:
            await self._rewards.check(principal, select)

    async def choose(
        self,
        prepared: Prepared,
        prompt: Prompt,
        selection: Selection,
        answers: Sequence[Answer],
    ) -> list[Chosen]:
        """`keep` of the answers to one prompt, best first; of equals the earlier one.

        FailedPrecondition: no answer can be scored, or the pattern finds nothing in any.
        """
        select = selection.select
        if select.by == "vote":
            chosen = await self._voted(prepared, prompt, select, answers)
        else:
            scores = await self._scores(prepared, prompt, select, answers)
            chosen = [
                Chosen(i, {"by": select.by, "score": scores.values[i], **scores.notes[i]})
                for i in scores.ranked()
            ]
        return chosen[: selection.keep]

    async def _scores(
        self,
        prepared: Prepared,
        prompt: Prompt,
        select: Select,
        answers: Sequence[Answer],
    ) -> Scores:
        if select.scored:
            return await self._rewards.scores(prepared, prompt, select, answers)
        return likelihoods(answers)

    # -- a vote --------------------------------------------------------------------------------

    async def _voted(
        self,
        prepared: Prepared,
        prompt: Prompt,
        select: Select,
        answers: Sequence[Answer],
    ) -> list[Chosen]:
        assert select.pattern is not None
        texts = [text_of(events) for events in answers]
        said = await self._found(select.pattern, texts)
        if not any(said):
            raise FailedPrecondition(
                f"select.pattern: nothing matches in any of the {len(said)} answers, of which the "
                f"first begins with {texts[0][:_SHOWN]!r}",
                reason="NO_ANSWER_FOUND",
                field="select.pattern",
            )
        weights = [1.0] * len(answers)
        if select.weights in ("likelihood", "reward"):
            weights = (await self._scores(prepared, prompt, select, answers)).weights()
        cast = votes(said, weights)
        if not cast:
            raise FailedPrecondition(
                "select.weights: none of the answers that the pattern finds can be weighed",
                reason="NOT_SCORED",
                field="select.weights",
            )
        order = [i for one in cast for i in sorted(one.voters, key=lambda i: (-weights[i], i))]
        order += [i for i in range(len(answers)) if i not in order]
        by_answer: dict[str | None, Vote[str]] = {one.answer: one for one in cast}
        return [Chosen(i, _ballot(said[i], by_answer, weights[i])) for i in order]

    async def _found(self, pattern: str, texts: Sequence[str]) -> list[str | None]:
        try:
            return await self._matcher.last(pattern, texts)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"select.pattern: {error.message}", reason=error.reason, field="select.pattern"
            ) from error


def _ballot(said: str | None, cast: dict[str | None, Vote[str]], weight: float) -> dict[str, Any]:
    """votes: samples with this answer that have a voice; score: their share of all weight."""
    found = cast.get(said)
    return {
        "by": "vote",
        "score": found.share if found else 0.0,
        "votes": len(found.voters) if found else 0,
        "answer": said,
        "weight": weight if said is not None else 0.0,
    }
