"""Samples of a policy, with all that is needed to learn from them, refuse them, or make them again.

`RolloutSampler` is the seam: here an engine in this process, in `shards` a queue and who pulls
from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from plinth.engine.engine import Engine
from plinth.engine.request import (
    Binding,
    FailedEvent,
    Finish,
    Request,
    SampledToken,
    Sampling,
    TokensEvent,
)
from plinth.shared.errors import DataLoss


@dataclass(frozen=True)
class Order:
    """`samples` answers wanted to one prompt; they make one group."""

    group: int
    prompt: tuple[int, ...]
    samples: int
    seed: int


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. Log-probabilities are the sampler's, in float32: after temperature and
    filters, and before them. `max_tokens`: as many as the response might have had, by which the
    sampler's sequence turned (`ModelConfig.rope_offset`). `revision` counts the policy's updates;
    the digest names its very weights."""

    group: int
    sample_index: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    seed: int
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    revision: int
    weights_digest: str
    ended: bool  # by itself, not by length
    max_tokens: int

    @property
    def id(self) -> str:
        return f"{self.revision}.{self.group}.{self.sample_index}"


class RolloutSampler(ABC):
    """Answers by the policy as it was told last."""

    @abstractmethod
    def start(self, orders: Sequence[Order], sampling: Sampling) -> None:
        """Asks for answers by the present weights, whatever comes before they are there."""

    @abstractmethod
    def arrivals(self) -> Iterator[list[Rollout]]:
        """Groups of what was started, each whole and in order of its samples, as they are ready.
        Raises what one of them failed with."""

    @abstractmethod
    def renew(self, revision: int) -> str:
        """The policy has new weights; their digest."""

    def sample(self, orders: Sequence[Order], sampling: Sampling) -> list[Rollout]:
        """All answers, ordered by group and sample index, whatever order they were ready in."""
        self.start(orders, sampling)
        return in_order(chain.from_iterable(self.arrivals()))


def in_order(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """As they were dispatched: order of arrival would favour short answers."""
    return sorted(rollouts, key=lambda rollout: (rollout.group, rollout.sample_index))


class EngineSampler(RolloutSampler):
    """Samples on an engine of this process, whose decoder the trainer updates in place."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._revision = 0
        self._waiting: dict[str, tuple[Order, int]] = {}
        self._max_tokens = 0

    def renew(self, revision: int) -> str:
        self._revision = revision
        return self._engine.renew_weights()

    def start(self, orders: Sequence[Order], sampling: Sampling) -> None:
        self._max_tokens = sampling.max_tokens
        for order in orders:
            for index in range(order.samples):
                key = f"{order.group}.{index}"
                self._waiting[key] = (order, index)
                self._engine.add(
                    Request(
                        key,
                        order.prompt,
                        Binding(self._engine.weights_digest),
                        _with(sampling, order.seed, index),
                    )
                )

    def arrivals(self) -> Iterator[list[Rollout]]:
        waiting, self._waiting = self._waiting, {}
        tokens: dict[str, list[SampledToken]] = {key: [] for key in waiting}
        groups: dict[int, list[Rollout]] = {order.group: [] for order, _ in waiting.values()}
        while self._engine.busy:
            for event in self._engine.step():
                if isinstance(event, FailedEvent):
                    raise event.error
                assert isinstance(event, TokensEvent)
                tokens[event.request_id] += event.tokens
                if event.finish is None:
                    continue
                order, index = waiting[event.request_id]
                group = groups[order.group]
                group.append(self._rollout(order, index, tokens[event.request_id], event.finish))
                if len(group) == order.samples:
                    yield in_order(group)

    def _rollout(
        self, order: Order, index: int, tokens: list[SampledToken], finish: Finish
    ) -> Rollout:
        return Rollout(
            order.group,
            index,
            order.prompt,
            tuple(token.id for token in tokens),
            order.seed,
            tuple(array("f", (token.logprob for token in tokens))),
            tuple(array("f", (token.raw_logprob for token in tokens))),
            self._revision,
            self._engine.weights_digest,
            finish is Finish.STOP,
            self._max_tokens,
        )


def _with(sampling: Sampling, seed: int, index: int) -> Sampling:
    return Sampling(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        stop_ids=sampling.stop_ids,
        keep_stop=True,
        seed=seed,
        sample_index=index,
        speculation="off",
    )


def check_fresh(
    rollouts: Iterable[Rollout], revision: int, digests: Collection[str], staleness: int = 0
) -> None:
    """DataLoss, naming the rollout, unless all are of known weights and at most `staleness` old."""
    for rollout in rollouts:
        if rollout.weights_digest not in digests:
            raise DataLoss(
                f"rollout {rollout.id} was sampled by weights {rollout.weights_digest}, which this "
                "run never had",
                reason="UNKNOWN_WEIGHTS",
            )
        if not revision - staleness <= rollout.revision <= revision:
            raise DataLoss(
                f"rollout {rollout.id} is of revision {rollout.revision}; at revision {revision} "
                f"the run takes rollouts at most {staleness} old",
                reason="STALE_ROLLOUT",
            )
