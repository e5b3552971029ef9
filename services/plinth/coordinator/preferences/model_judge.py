"""A served model as a judge. It never writes: the scores of its possible verdicts are compared, so
that a model that would ramble judges as well as one that obeys, and the same weights always judge
alike.

pairwise   "A or B?", asked in both orders; where the two answers disagree it is a tie (L. Zheng et
           al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023). More than two
           responses play each against each, and rank by points.
rubric     a score from 1 to 10 for each response: the mean of the scores under the model's
           distribution over them (Y. Liu et al., "G-Eval", 2023).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from plinth.coordinator.preferences.sampling import Served
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.v1 import chat_pb2

DEFAULT_CRITERIA = "how helpful, correct and clear the response is"
MAX_CRITERIA_CHARS = 2000
_SCORES = range(1, 11)

_PAIRWISE = """Compare two responses to a conversation by this: {criteria}.

[Conversation]
{conversation}

[Response A]
{first}

[Response B]
{second}

Which response is better? Answer with one letter only, A or B."""

_RUBRIC = """Judge a response to a conversation by this: {criteria}.

[Conversation]
{conversation}

[Response]
{response}

Give a score from 1 (very bad) to 10 (excellent). Answer with the number only."""


def check_method(method: str, criteria: str) -> tuple[str, str]:
    """(method: a word of JudgingMethod, criteria) with defaults filled in."""
    if len(criteria) > MAX_CRITERIA_CHARS:
        raise InvalidArgument(
            f"criteria: at most {MAX_CRITERIA_CHARS} characters", field="criteria"
        )
    return method or "pairwise", criteria.strip() or DEFAULT_CRITERIA


def judge_name(artifact: str, method: str, criteria: str) -> str:
    """Under which its judgements appear: another prompt is another judge."""
    mark = hashlib.sha256(criteria.encode()).hexdigest()[:6]
    name = f"{artifact}/{method}"
    return name if criteria == DEFAULT_CRITERIA else f"{name}/{mark}"


class ModelJudge:
    """One model, method and criteria."""

    def __init__(self, served: Served, method: str, criteria: str) -> None:
        self._served = served
        self._method = method
        self._criteria = criteria

    async def ranking(self, task: rec.PreferenceTaskRecord) -> tuple[list[list[str]], str]:
        """(response ids in tiers, best first; how it came about)."""
        if self._method == "pairwise":
            return await self._by_pairs(task)
        return await self._by_scores(task)

    async def _by_pairs(self, task: rec.PreferenceTaskRecord) -> tuple[list[list[str]], str]:
        letters = await self._served.model.encode(["A", "B"])
        points: dict[str, float] = {one.response_id: 0.0 for one in task.responses}
        split = 0
        for one, other in combinations(task.responses, 2):
            first = await self._prefers_first(task, one.text, other.text, letters)
            second = await self._prefers_first(task, other.text, one.text, letters)
            if first > 0 > second:
                points[one.response_id] += 1
            elif first < 0 < second:
                points[other.response_id] += 1
            else:
                split += 1
                points[one.response_id] += 0.5
                points[other.response_id] += 0.5
        games = len(task.responses) * (len(task.responses) - 1) // 2
        return _tiers(points), f"pairwise, both orders; {split} of {games} pairs undecided"

    async def _prefers_first(
        self,
        task: rec.PreferenceTaskRecord,
        first: str,
        second: str,
        letters: Sequence[Sequence[int]],
    ) -> float:
        """By how much log p of "A" (the first) is above that of "B"."""
        text = _PAIRWISE.format(
            criteria=self._criteria, conversation=_told(task.prompt), first=first, second=second
        )
        a, b = await self._verdicts(text, letters)
        return a - b

    async def _by_scores(self, task: rec.PreferenceTaskRecord) -> tuple[list[list[str]], str]:
        words = await self._served.model.encode([str(score) for score in _SCORES])
        means: dict[str, float] = {}
        for one in task.responses:
            text = _RUBRIC.format(
                criteria=self._criteria, conversation=_told(task.prompt), response=one.text
            )
            # With the turn's end: "1" alone is also how "10" begins.
            logps = await self._verdicts(text, words, ended=True)
            highest = max(logps)
            weights = [math.exp(logp - highest) for logp in logps]
            mean = sum(s * w for s, w in zip(_SCORES, weights, strict=True)) / sum(weights)
            means[one.response_id] = round(mean, 1)
        told = ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())
        return _tiers(means), f"rubric from 1 to 10: {told}"

    async def _verdicts(
        self, question: str, words: Sequence[Sequence[int]], *, ended: bool = False
    ) -> list[float]:
        message = chat_pb2.ChatMessage(role="user", content=question)
        ids, stops = await self._served.model.prompt_ids([message])
        ends = stops[:1] if ended else []
        longest = max(len(word) for word in words) + len(ends)
        if len(ids) + longest > self._served.context:
            raise FailedPrecondition(
                f"the judge's question has {len(ids)} tokens, more than {self._served.artifact} "
                f"can read ({self._served.context})",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        return await self._served.model.continuations(ids, [[*word, *ends] for word in words])


def _told(prompt: Sequence[chat_pb2.ChatMessage]) -> str:
    return "\n\n".join(f"{message.role.title()}: {message.content}" for message in prompt)


def _tiers(points: dict[str, float]) -> list[list[str]]:
    """Ids of equal points together, most points first."""
    groups: dict[float, list[str]] = defaultdict(list)
    for name, value in points.items():
        groups[value].append(name)
    return [groups[value] for value in sorted(groups, reverse=True)]
