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
    """RewardService."""

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
        """Scores answers by every source and combines the parts. Idempotent.

        sources: 1 to 16.
        items: 1 to 1024.
        tokenizer: The model or tokenizer that token ids are of. Needed where ids must become
          text. A reward model takes ids only of its own tokenizer's.
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
        """Says whether these sources would be taken, and what their references mean now. Loads
        nothing."""
        response: rewards_pb2.CheckSourcesResponse = self._calls.unary(
            _CHECK_SOURCES,
            request(rewards_pb2.CheckSourcesRequest, sources=sources),
            timeout,
            metadata,
        )
        return response


class AsyncRewardService:
    """RewardService."""

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
        """Scores answers by every source and combines the parts. Idempotent.

        sources: 1 to 16.
        items: 1 to 1024.
        tokenizer: The model or tokenizer that token ids are of. Needed where ids must become
          text. A reward model takes ids only of its own tokenizer's.
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
        """Says whether these sources would be taken, and what their references mean now. Loads
        nothing."""
        response: rewards_pb2.CheckSourcesResponse = await self._calls.unary(
            _CHECK_SOURCES,
            request(rewards_pb2.CheckSourcesRequest, sources=sources),
            timeout,
            metadata,
        )
        return response
