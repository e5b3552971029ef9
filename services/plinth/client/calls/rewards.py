"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import rewards_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_SCORE_REWARDS = Method.of(rewards_pb2.DESCRIPTOR, "RewardService", "ScoreRewards")
_CHECK_SOURCES = Method.of(rewards_pb2.DESCRIPTOR, "RewardService", "CheckSources")


class RewardService:
    """Scores answers to prompts. Stateless: nothing of a request is kept."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def score_rewards(
        self,
        sources: Iterable[rewards_pb2.RewardSource] | None = None,
        *,
        items: Iterable[rewards_pb2.RewardItem] | None = None,
        tokenizer: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> rewards_pb2.ScoreRewardsResponse:
        """Scores each item by every source, and combines the parts of an item to one reward. The
        same request gives the same scores as long as its artifact references mean the same
        versions.

        INVALID_ARGUMENT: the field of the request that is wrong is named; RULE_UNKNOWN and
        RULE_INVALID are the reasons for a rule. NOT_FOUND: a reward model that there is not.
        UNAVAILABLE: the tokenizer of the request is not loaded now. DATA_LOSS
        (REWARD_NOT_FINITE): a score is no finite number.

        sources: 1 to 16.
        items: 1 to 1024.
        tokenizer: A served model's name, or the artifact reference of a model or tokenizer,
          whose token ids the items hold. Required where rules judge `response_tokens`. A reward
          model takes ids of its own tokenizer only.
        """
        response: rewards_pb2.ScoreRewardsResponse = self._calls.unary(
            _SCORE_REWARDS,
            request(
                rewards_pb2.ScoreRewardsRequest, sources=sources, items=items, tokenizer=tokenizer
            ),
            timeout,
            metadata,
        )
        return response

    def check_sources(
        self,
        sources: Iterable[rewards_pb2.RewardSource] | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> rewards_pb2.CheckSourcesResponse:
        """Checks sources without scoring anything: fails as ScoreRewards would for these sources,
        or says which artifact versions their references mean now. Loads no model.

        sources: 1 to 16.
        """
        response: rewards_pb2.CheckSourcesResponse = self._calls.unary(
            _CHECK_SOURCES,
            request(rewards_pb2.CheckSourcesRequest, sources=sources),
            timeout,
            metadata,
        )
        return response


class AsyncRewardService:
    """Scores answers to prompts. Stateless: nothing of a request is kept."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def score_rewards(
        self,
        sources: Iterable[rewards_pb2.RewardSource] | None = None,
        *,
        items: Iterable[rewards_pb2.RewardItem] | None = None,
        tokenizer: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> rewards_pb2.ScoreRewardsResponse:
        """Scores each item by every source, and combines the parts of an item to one reward. The
        same request gives the same scores as long as its artifact references mean the same
        versions.

        INVALID_ARGUMENT: the field of the request that is wrong is named; RULE_UNKNOWN and
        RULE_INVALID are the reasons for a rule. NOT_FOUND: a reward model that there is not.
        UNAVAILABLE: the tokenizer of the request is not loaded now. DATA_LOSS
        (REWARD_NOT_FINITE): a score is no finite number.

        sources: 1 to 16.
        items: 1 to 1024.
        tokenizer: A served model's name, or the artifact reference of a model or tokenizer,
          whose token ids the items hold. Required where rules judge `response_tokens`. A reward
          model takes ids of its own tokenizer only.
        """
        response: rewards_pb2.ScoreRewardsResponse = await self._calls.unary(
            _SCORE_REWARDS,
            request(
                rewards_pb2.ScoreRewardsRequest, sources=sources, items=items, tokenizer=tokenizer
            ),
            timeout,
            metadata,
        )
        return response

    async def check_sources(
        self,
        sources: Iterable[rewards_pb2.RewardSource] | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> rewards_pb2.CheckSourcesResponse:
        """Checks sources without scoring anything: fails as ScoreRewards would for these sources,
        or says which artifact versions their references mean now. Loads no model.

        sources: 1 to 16.
        """
        response: rewards_pb2.CheckSourcesResponse = await self._calls.unary(
            _CHECK_SOURCES,
            request(rewards_pb2.CheckSourcesRequest, sources=sources),
            timeout,
            metadata,
        )
        return response
