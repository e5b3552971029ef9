"""The whole way from a request to rewards: check, open, read, judge, combine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from plinth.reward.combine import combine
from plinth.reward.learned import LearnedModels
from plinth.reward.request import Asked, Source, parse_request, parse_sources
from plinth.reward.sandbox.runner import Limits, Sandbox, SandboxOutcome
from plinth.reward.texts import Texts
from plinth.reward.verifiers import Answer, Rule, Verdict
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.shared.matching import Matcher
from plinth.shared.rpc.client import StageClients
from plinth.shared.settings_sections import RewardSettings
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import rewards_pb2 as pb

T = TypeVar("T")
_TOGETHER = 8  # answers that a rule judges without a pause


class Scorer:
    """One per replica. Keeps models, the pattern process and the places for code."""

    def __init__(
        self, store: ArtifactStore, clients: StageClients, settings: RewardSettings
    ) -> None:
        self._models = LearnedModels(store, settings)
        self._texts = Texts(clients, store)
        self._matcher = Matcher(settings.regex_s)
        self._sandbox = Sandbox(settings.code_processes)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a launch of a model."""
        return self._models.waiting

    async def close(self) -> None:
        await self._matcher.close()

    async def check(self, sources: Sequence[pb.RewardSource]) -> list[pb.RewardModelUsed]:
        """Raises what `score` would raise for these sources, short of opening them."""
        parsed = parse_sources(sources)
        return [
            _used(source, await self._models.find(source.model, f"sources.{i}.model"))
            for i, source in enumerate(parsed)
            if source.rule is None
        ]

    async def score(self, request: pb.ScoreRewardsRequest) -> pb.ScoreRewardsResponse:
        """InvalidArgument, NotFound: the request. DataLoss: a score that is no number.
        Unavailable: the tokenizer is away."""
        asked = parse_request(request)
        records = {
            source.name: await self._models.find(source.model, f"sources.{i}.model")
            for i, source in enumerate(asked.sources)
            if source.rule is None
        }
        answers = await self._answers(asked) if asked.needs_text else []
        verdicts = await _all(
            self._judged(source.rule, answers)
            if source.rule is not None
            else self._learned(asked, source.name, records[source.name])
            for source in asked.sources
        )
        return pb.ScoreRewardsResponse(
            rewards=combine(asked.sources, verdicts),
            models=[_used(source, records[source.name]) for source in asked.models],
        )

    async def _answers(self, asked: Asked) -> list[Answer]:
        texts = await self._texts.answers(asked)
        return [
            Answer(
                text,
                len(item.response_tokens.ids) if item.HasField("response_tokens") else None,
                item.reference if item.HasField("reference") else None,
                tuple(item.tests),
                checks,
            )
            for item, checks, text in zip(asked.items, asked.checks, texts, strict=True)
        ]

    async def _judged(self, rule: Rule, answers: Sequence[Answer]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for low in range(0, len(answers), _TOGETHER):  # between them the loop breathes: heartbeats
            some = answers[low : low + _TOGETHER]
            verdicts += await _all(rule.judge(answer, self) for answer in some)
        return verdicts

    async def _learned(self, asked: Asked, source: str, record: ArtifactRecord) -> list[Verdict]:
        sequences = await self._texts.sequences(asked, record)
        try:
            model = await self._models.model(record)
        except (DataLoss, InvalidArgument) as error:
            raise type(error)(
                f"source {source!r}: {record.ref} can't be opened: {error.message}",
                reason="REWARD_MODEL_BROKEN",
                metadata={"source": source},
            ) from error
        verdicts: list[Verdict | None] = []
        for i, sequence in enumerate(sequences):
            verdicts.append(_unscored(sequence, model.context))
            if sequence and max(sequence) >= model.vocab_size:
                raise InvalidArgument(
                    f"items.{i}: id {max(sequence)} is not of {record.ref}, which has "
                    f"{model.vocab_size}",
                    field=f"items.{i}",
                )
        wanted = [s for s, verdict in zip(sequences, verdicts, strict=True) if verdict is None]
        scores = iter(await model.scores(wanted))
        return [Verdict(next(scores)) if verdict is None else verdict for verdict in verdicts]

    # -- the tools of rules ----------------------------------------------------------------

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        return await self._matcher.match(pattern, flags, full, text)

    async def run_tests(
        self, code: str, tests: Sequence[str], limits: Limits, *, setup: str, candidate: str
    ) -> SandboxOutcome:
        return await self._sandbox.run(code, tests, limits, setup=setup, candidate=candidate)


def _unscored(sequence: Sequence[int], context: int) -> Verdict | None:
    if not sequence:
        return Verdict(None, "the response is empty")
    if len(sequence) > context:
        return Verdict(None, f"{len(sequence)} tokens; the reward model sees at most {context}")
    return None


def _used(source: Source, record: ArtifactRecord) -> pb.RewardModelUsed:
    return pb.RewardModelUsed(source=source.name, artifact=record.ref, digest=record.digest)


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results; the first that fails ends the others, and its error is the one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
