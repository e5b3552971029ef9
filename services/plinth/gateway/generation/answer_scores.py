"""What complete answers are worth: by their likelihood, or by the reward stage.

Either is one number for each answer, and what else is known beside it; None where it has none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from plinth.algos.selection import softmax, top_k
from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.generator import Prepared, Prompt
from plinth.gateway.generation.retries import with_retries
from plinth.gateway.generation.selection import Select
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound, PlinthError
from plinth.shared.identity import Principal
from plinth.shared.rpc.client import StageClients
from plinth.v1 import chat_pb2, rewards_pb2, sampling_pb2
from plinth.v1.rewards_pb2_grpc import RewardServiceStub

STAGE, SCOPE = "reward", "rewards"
LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which has no mean

Answer = Sequence[TextEvent]  # all pieces of one


@dataclass(frozen=True)
class Scores:
    """What each answer is worth; None: it can't be said. notes: beside the score."""

    values: list[float | None]
    notes: list[dict[str, Any]]

    @property
    def known(self) -> list[int]:
        """Numbers of the answers that have a score."""
        return [number for number, value in enumerate(self.values) if value is not None]

    def ranked(self) -> list[int]:
        """Best first; those without a score last, in order."""
        known = self.known
        order = top_k([self._of(i) for i in known], len(known)) if known else []
        return [known[at] for at in order] + sorted(set(range(len(self.values))) - set(known))

    def weights(self) -> list[float]:
        """Adding up to 1; an answer without a score has no voice."""
        weights = [0.0] * len(self.values)
        known = self.known
        shares = softmax([self._of(i) for i in known]) if known else []
        for i, share in zip(known, shares, strict=True):
            weights[i] = share
        return weights

    def _of(self, number: int) -> float:
        value = self.values[number]
        assert value is not None
        return value


def likelihoods(answers: Sequence[Answer]) -> Scores:
    """Mean log-probability per token (the model's own, before temperature); None of no tokens."""
    return Scores([_mean_logprob(one) for one in answers], [{} for _ in answers])


class Rewards:
    """The reward stage, which may be away for a moment."""

    def __init__(self, clients: StageClients, patience_s: float) -> None:
        self._clients, self._patience_s = clients, patience_s

    async def check(self, principal: Principal, select: Select) -> None:
        """Raises what would be wrong with any answers: a rule, a reward model that is not there,
        a key without the scope "rewards", a stage that is away."""
        principal.require(SCOPE)
        request = rewards_pb2.CheckSourcesRequest(sources=select.sources())

        async def ask(channel: grpc.aio.Channel) -> None:
            await RewardServiceStub(channel).CheckSources(request)

        try:
            await with_retries(self._clients, STAGE, ask, principal, self._patience_s)
        except (InvalidArgument, NotFound) as error:
            raise _in_our_words(error, select) from error

    async def scores(
        self, prepared: Prepared, prompt: Prompt, select: Select, answers: Sequence[Answer]
    ) -> Scores:
        """One for each answer of one prompt. FailedPrecondition: none can be scored."""
        request = rewards_pb2.ScoreRewardsRequest(
            sources=select.sources(),
            items=[_item(prompt, prepared, select, events) for events in answers],
            tokenizer=prepared.model.artifact,
        )

        async def ask(channel: grpc.aio.Channel) -> rewards_pb2.ScoreRewardsResponse:
            left_s = max(0.001, prepared.deadline - time.monotonic())
            answer = await RewardServiceStub(channel).ScoreRewards(request, timeout=left_s)
            assert isinstance(answer, rewards_pb2.ScoreRewardsResponse)
            return answer

        try:
            scored = await with_retries(
                self._clients, STAGE, ask, prepared.principal, self._patience_s
            )
        except (InvalidArgument, NotFound) as error:
            raise _in_our_words(error, select) from error
        values = [r.total if r.HasField("total") else None for r in scored.rewards]
        if all(value is None for value in values):
            part = next(p for p in scored.rewards[0].parts if not p.HasField("value"))
            raise FailedPrecondition(
                f"select: none of the {len(values)} answers can be scored; the first one not by "
                f"{part.source!r}: {part.reason}",
                reason="NOT_SCORED",
                field="select",
            )
        return Scores(values, [_parts(reward) for reward in scored.rewards])


def _mean_logprob(events: Answer) -> float | None:
    values = [max(token.raw_logprob, LOWEST_LOGPROB) for event in events for token in event.tokens]
    return math.fsum(values) / len(values) if values else None


def text_of(events: Answer) -> str:
    """What the client would get."""
    return "".join(event.text for event in events)


def _item(
    prompt: Prompt, prepared: Prepared, select: Select, events: Answer
) -> rewards_pb2.RewardItem:
    item = rewards_pb2.RewardItem(
        response_text=text_of(events),
        response_cut_off=events[-1].finish == sampling_pb2.FINISH_REASON_LENGTH,
    )
    if select.reward is None:  # rules look at answers alone
        return item
    if isinstance(prompt, str):
        item.prompt_text = prompt
        return item
    messages = [one for one in prompt if isinstance(one, chat_pb2.ChatMessage)]
    if messages:
        item.prompt_messages.messages.extend(messages)
    else:
        item.prompt_tokens.ids.extend(prepared.prompt_ids)
    return item


def _parts(reward: rewards_pb2.Reward) -> dict[str, Any]:
    """Each source's value, None where it has none; and what sources say to it."""
    return {
        "parts": {p.source: p.value if p.HasField("value") else None for p in reward.parts},
        "reasons": {p.source: p.reason for p in reward.parts if p.reason},
    }


def _in_our_words(error: PlinthError, select: Select) -> PlinthError:
    """The stage's complaint about its `sources`, by the names that the client knows them by."""
    rules = len(select.rules or ())
    names = {f"sources.{number}.rule": f"select.rules.{number}.rule" for number in range(rules)}
    names[f"sources.{rules}.model"] = "select.reward"
    message, field = error.message, error.field
    for theirs, ours in names.items():
        message, field = message.replace(theirs, ours), field.replace(theirs, ours)
    if not field.startswith("select"):
        field = "select.reward" if isinstance(error, NotFound) else "select"
    if not message.startswith("select"):
        message = f"{field}: {message}"
    return type(error)(message, reason=error.reason, field=field, metadata=error.metadata)
