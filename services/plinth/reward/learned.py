"""Learned reward models behind one call: opened when first used, few kept, batches shared.

Concurrent calls share launches: while one batch is computed, what arrives waits for the next. A
score doesn't depend on that (`forward`). torch is imported with the first model, so that a replica
that only keeps rules stays small.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plinth.shared.errors import FailedPrecondition, InvalidArgument, PlinthError
from plinth.shared.kinds import a_kind
from plinth.shared.settings_sections import RewardSettings
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.shared.telemetry import counter, get_logger, histogram

if TYPE_CHECKING:
    from plinth.reward.forward import ScoringModel

KIND = "reward"
_log = get_logger("plinth.reward")
_TOKENS = counter("reward_tokens_total", "Tokens read by learned reward models")
_BATCH = histogram(
    "reward_batch_sequences",
    "Sequences that shared a launch of a reward model",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)


class LearnedModels:
    """At most `models_kept` open models by content; the one unused for longest goes first."""

    def __init__(self, store: ArtifactStore, settings: RewardSettings) -> None:
        self._store, self._settings = store, settings
        self._open: OrderedDict[str, LearnedModel] = OrderedDict()
        self._opening = asyncio.Lock()  # two at once would double the memory

    async def find(self, reference: str, where: str) -> ArtifactRecord:
        """What a reference means now. NotFound; InvalidArgument when it is no reward model."""
        record = await asyncio.to_thread(self._store.get, reference)
        if record.kind != KIND:
            raise InvalidArgument(
                f"{where}: {record.ref} is {a_kind(record.kind)}, not a reward model", field=where
            )
        return record

    async def model(self, record: ArtifactRecord) -> LearnedModel:
        """Opened, or from those that are. Raises what opening a checkpoint raises."""
        async with self._opening:
            found = self._open.get(record.digest)
            if found is None:
                scoring = await asyncio.to_thread(self._load, record)
                found = LearnedModel(scoring, self._settings.batch_tokens)
                _log.info("reward model opened", artifact=record.ref)
                self._open[record.digest] = found
            self._open.move_to_end(record.digest)
            while len(self._open) > self._settings.models_kept:
                self._open.popitem(last=False)  # whoever uses it still holds it
            return found

    @property
    def waiting(self) -> int:
        """Sequences that wait for a launch."""
        return sum(model.waiting for model in self._open.values())

    def _load(self, record: ArtifactRecord) -> ScoringModel:
        try:
            from plinth.reward.forward import ScoringModel  # noqa: PLC0415 - torch, when needed
        except ModuleNotFoundError as missing:
            raise FailedPrecondition(
                f"{record.ref} can't be opened: {missing}; install plinth-llm[reward]"
            ) from missing
        return ScoringModel(self._store.fetch(record), self._settings.device)


class LearnedModel:
    """One model and those who wait for it."""

    def __init__(self, scoring: ScoringModel, batch_tokens: int) -> None:
        self._scoring, self._batch_tokens = scoring, batch_tokens
        self._waiting: deque[tuple[tuple[int, ...], asyncio.Future[float]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    @property
    def context(self) -> int:
        """Most tokens that it sees at once."""
        return self._scoring.context

    @property
    def vocab_size(self) -> int:
        return self._scoring.vocab_size

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One per sequence, not always finite: that is for the caller to see. Cancelling it
        takes what has not begun out of the line."""
        loop = asyncio.get_running_loop()
        mine = [(tuple(sequence), loop.create_future()) for sequence in sequences]
        self._waiting.extend(mine)
        if mine and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._work())
        try:
            return list(await asyncio.gather(*(future for _, future in mine)))
        finally:
            for _, future in mine:
                future.cancel()

    async def _work(self) -> None:
        """Until nobody waits."""
        while batch := self._next():
            sequences = [sequence for sequence, _ in batch]
            _BATCH.observe(len(batch))
            _TOKENS.inc(sum(map(len, sequences)))
            try:
                scores = await asyncio.to_thread(self._scoring.scores, sequences)
            except PlinthError as error:
                self._end(batch, error)
                continue
            except Exception as error:  # noqa: BLE001 - theirs who wait; the next batch may be well
                _log.exception("a reward model failed")
                self._end(batch, error)
                continue
            for (_, future), score in zip(batch, scores, strict=True):
                if not future.done():
                    future.set_result(score)

    def _next(self) -> list[tuple[tuple[int, ...], asyncio.Future[float]]]:
        """First come, first served, up to the tokens of one launch; a longer one goes alone."""
        batch: list[tuple[tuple[int, ...], asyncio.Future[float]]] = []
        tokens = 0
        while self._waiting:
            sequence, future = self._waiting[0]
            if future.done():  # its caller hung up
                self._waiting.popleft()
                continue
            if batch and tokens + len(sequence) > self._batch_tokens:
                break
            batch.append(self._waiting.popleft())
            tokens += len(sequence)
        return batch

    @staticmethod
    def _end(batch: Sequence[tuple[object, asyncio.Future[float]]], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
