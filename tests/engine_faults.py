"""Worlds in which parts of an engine fail: a model made of hashes, and faults put into its parts.

The model's logits are a function of what it finds in its paged cache, so that a block that was
lost, shared wrongly, given up too early or left damaged shows up as another token. What a request's
answer is without faults is therefore known without an engine (`truth`).
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from plinth.engine import verification
from plinth.engine.engine import Engine
from plinth.engine.plan import Row
from plinth.engine.request import (
    Binding,
    FailedEvent,
    Finish,
    Request,
    SampledToken,
    Sampling,
    ScoresEvent,
)
from plinth.engine.runner import RowResult
from plinth.engine.sampling import sample
from plinth.engine.scheduler import Limits
from plinth.engine.speculation import LookupDrafter
from plinth.engine.tables import blocks_needed
from plinth.inference.step_times import StepTimes

VOCAB, STEPS = 8, 50
HANG_S = 10_000.0
_TABLE = torch.randn(1024, VOCAB, generator=torch.Generator().manual_seed(5)) * 2
_UNWRITTEN, _FREED, _DAMAGED = -1, -2, -3


# Of groups of layers: Llama's, one window for all, Gemma's pattern, two widths.
WINDOWS = ((0,), (0,), (6,), (1,), (0, 5, 5), (0, 0, 20), (3, 17))


def state(before: int, token: int) -> int:
    """What a group keeps of a token: a hash of it and of the state before, if it sees that (0 if
    not); so that it depends on all that came before, as a layer's keys do."""
    return zlib.crc32(np.array([before, token], dtype=np.int64).tobytes())


def logits(seen: list[np.ndarray]) -> torch.Tensor:
    """Of the next token, by the states that it sees in each group; not finite where a slot is not
    what somebody wrote."""
    values = np.concatenate(seen)
    if (values < 0).any():
        return torch.full((VOCAB,), torch.nan)
    return _TABLE[zlib.crc32(values.tobytes()) % len(_TABLE)]


def logits_after(ids: Sequence[int], windows: Sequence[int]) -> torch.Tensor:
    """Of the token that follows these, without a cache."""
    states: list[list[int]] = [[] for _ in windows]
    for token in ids:
        _follow(states, windows, token)
    return _logits_of(states, windows)


def _follow(states: list[list[int]], windows: Sequence[int], token: int) -> None:
    for kept, window in zip(states, windows, strict=True):
        kept.append(state(kept[-1] if kept and window != 1 else 0, token))


def _logits_of(states: list[list[int]], windows: Sequence[int]) -> torch.Tensor:
    pairs = zip(states, windows, strict=True)
    return logits([np.array(kept[-window:], dtype=np.int64) for kept, window in pairs])


def truth(request: Request, windows: Sequence[int] = (0,)) -> list[SampledToken]:
    """The whole answer, by the model alone."""
    answer: list[SampledToken] = []
    states: list[list[int]] = [[] for _ in windows]
    for token in request.ids:
        _follow(states, windows, token)
    for position in range(request.sampling.max_tokens):
        row = _logits_of(states, windows).unsqueeze(0)
        answer += sample(row, [(request.sampling, position)])
        _follow(states, windows, answer[-1].id)
    return answer


class HashModel:
    """What an engine wants of a runner, with hooks for faults."""

    def __init__(
        self, blocks: int, block_size: int, context: int, windows: tuple[int, ...] = (0,)
    ) -> None:
        config = SimpleNamespace(vocab_size=VOCAB, context=context, rope_offset=lambda length: 0)
        self.decoder = SimpleNamespace(config=config)
        self.windows = windows
        self.cache = SimpleNamespace(
            blocks=blocks, block_size=block_size, windows=windows, poison=self._poison
        )
        self._slots = np.full((blocks, block_size), _UNWRITTEN, dtype=np.int64)
        self.before: Callable[[Sequence[Row]], None] = lambda rows: None
        self.after: Callable[[Sequence[Row], list[RowResult]], list[RowResult]] = (
            lambda rows, results: results
        )

    def _poison(self, blocks: list[int]) -> None:
        self._slots[blocks] = _FREED

    def damage(self, row: Row) -> None:
        """The keys and values of this row's tokens are not finite."""
        for group in range(len(row.tables)):
            for position in range(row.start, row.start + len(row.tokens)):
                self._put(row, group, position, _DAMAGED)

    def _put(self, row: Row, group: int, position: int, value: int) -> None:
        self._slots[self._slot(row, group, position)] = value

    def _slot(self, row: Row, group: int, position: int) -> tuple[int, int]:
        skipped, table = row.tables[group]
        size = self.cache.block_size
        assert position // size >= skipped, "a token sees what was given up"
        return table[position // size - skipped], position % size

    def _seen(self, row: Row, group: int, end: int) -> np.ndarray:
        """States of the positions before `end` that a token at `end - 1` sees."""
        return self._between(row, group, self._first(group, end - 1), end)

    def _of(self, row: Row, group: int) -> np.ndarray:
        """States of all positions that the row's tokens see."""
        first = self._first(group, row.start)
        return self._between(row, group, first, row.start + len(row.tokens))

    def _first(self, group: int, position: int) -> int:
        window = self.windows[group]
        return max(0, position + 1 - window) if window else 0

    def _between(self, row: Row, group: int, first: int, end: int) -> np.ndarray:
        (skipped, table), size = row.tables[group], self.cache.block_size
        self._slot(row, group, first)
        return self._slots[list(table)].reshape(-1)[first - skipped * size : end - skipped * size]

    def run_rows(self, rows: Sequence[Row]) -> list[RowResult]:
        for row in rows:
            for group, window in enumerate(self.windows):
                for position, token in enumerate(row.tokens, row.start):
                    before = 0
                    if window != 1 and position:
                        before = int(self._slots[self._slot(row, group, position - 1)])
                    self._put(row, group, position, state(before, token) if before >= 0 else before)
        self.before(rows)
        return self.after(rows, [self._result(row) for row in rows])

    def _after(self, row: Row, position: int) -> torch.Tensor:
        return logits([self._seen(row, g, position + 1) for g in range(len(self.windows))])

    def _result(self, row: Row) -> RowResult:
        end = row.start + len(row.tokens)
        wanted = [self._after(row, end - row.outputs + i) for i in range(row.outputs)]
        scores = [
            float(self._after(row, row.start + row.targets_at + i).log_softmax(-1)[target])
            for i, target in enumerate(row.targets)
        ]
        finite = all(bool((self._of(row, group) >= 0).all()) for group in range(len(self.windows)))
        return RowResult(torch.stack(wanted) if wanted else None, scores, finite)


class HashDrafter:
    """Guesses the likeliest token, which is right now and then."""

    def __init__(self, windows: tuple[int, ...]) -> None:
        self.windows = windows

    def propose(self, sequences: Sequence[tuple[Any, int]]) -> list[list[int]]:
        return [
            [int(logits_after(sequence.ids, self.windows).argmax())] * min(count, 3)
            for sequence, count in sequences
        ]

    def commit(self, sequence: Any, before: int, accepted: int) -> None:
        """Nothing is kept."""

    def forget(self, sequence: Any) -> None:
        """Nothing is kept."""


# Faults that belong to one request, and those of one moment, in which nobody or one request fails.
PINNED = (
    "model raises", "model NaN", "model infinite", "model wrong shape", "model damages cache",
    "model hangs, then raises", "sampler raises", "sampler NaN", "sampler wrong id",
)  # fmt: skip
HARMLESS = (
    "model raises once", "model miscounts once", "model hangs", "sampler raises once",
    "sampler miscounts once", "drafter raises", "drafter of floats", "drafter wrong id",
    "drafter too long", "drafter miscounts", "drafter hangs", "drafter commit raises",
    "drafter forget raises", "model NaN for drafts", "model raises for drafts",
)  # fmt: skip
OF_THE_CACHE = ("allocate raises once", "match raises once", "seal raises once")
KINDS = PINNED + HARMLESS + OF_THE_CACHE


class World:
    """An engine with neighbours, one victim, and at most one kind of fault."""

    def __init__(self, seed: int, kind: str = "") -> None:
        self.dice = dice = random.Random(seed)
        self.kind, self.hits, self.now = kind, 0, 0.0
        size, context = dice.choice([1, 2, 4, 16]), 64
        self.windows = dice.choice(WINDOWS)
        alone = blocks_needed(-(-context // size), size, self.windows)
        self.model = HashModel(alone * dice.choice([1, 2, 5]), size, context, self.windows)
        self.drafter = HashDrafter(self.windows)
        self.engine = Engine(
            self.model,  # type: ignore[arg-type]
            Limits(
                batch_tokens=dice.choice([3, 8, 40]),
                running=dice.choice([2, 4, 8]),
                waiting=1_000,
                positions=context,
                priority_aging=dice.choice([0, 20]),
            ),
            prefix_cache=dice.random() < 0.8,
            drafters={"lookup": LookupDrafter(1, 1), "draft": self.drafter},
            speculation="draft" if "draft" in kind else dice.choice(["off", "lookup", "draft"]),
            poison=True,
            clock=lambda: self.now,
        )
        self.times = StepTimes()
        self.asked: dict[str, Request] = {}
        self.tokens: dict[str, list[SampledToken]] = {}
        self.ends: dict[str, Finish | FailedEvent | tuple[float, ...]] = {}
        self.victim = 0  # its number
        self.begins = dice.randrange(2, 30)

    # -- requests ---------------------------------------------------------------------------

    def add(self, *, victim: bool = False, like: str = "") -> str:
        name, dice = str(len(self.asked) + 1), self.dice
        prompt = tuple(dice.randrange(2) for _ in range(dice.randrange(1, 30)))
        score = dice.randrange(1, len(prompt)) if len(prompt) > 1 and dice.random() < 0.1 else None
        late = not victim and not like and dice.random() < 0.1
        request = Request(
            name,
            self.asked[like].ids if like else prompt,
            Binding(""),
            Sampling(
                temperature=dice.choice([0.0, 1.0, 1.0, 0.7]),
                top_k=dice.choice([0, 0, 3]),
                seed=dice.randrange(1000),
                max_tokens=dice.randrange(1, 16),
            ),
            priority=dice.choice([-1, 0, 0, 1]),
            deadline=self.now + 100.0 if late else None,
            score_from=None if victim or like else score,
        )
        self.asked[name], self.tokens[name] = request, []
        self.engine.add(request)
        if victim:
            self.victim = len(self.asked)
        return name

    def run(self) -> None:
        """At least STEPS steps with two neighbours or more; then until nothing is left."""
        with mock.patch.object(verification, "sample", self._sample):
            if self.kind:
                self._inject()
            for step in range(STEPS):
                if step == self.begins - 1:
                    self.add(victim=True)
                while len(self._live()) < 2 or self.dice.random() < 0.2:
                    self.add()
                if self.dice.random() < 0.02:
                    self._cancel(self.dice.choice(sorted(self._live())))
                self._step()
            budget = 5_000
            while self.engine.busy and budget:
                self._step()
                budget -= 1
            assert not self.engine.busy, "a request never ended"
        self.model.before = lambda rows: None
        self.model.after = lambda rows, results: results
        if self.victim:  # nothing of what it left behind is in anybody's way
            self.add(like=str(self.victim))
            while self.engine.busy:
                self._step()
        self.check()

    def _live(self) -> set[str]:
        return set(self.asked) - set(self.ends) - {str(self.victim)}

    def _cancel(self, name: str) -> None:
        self.engine.abort(name)
        self.ends[name] = Finish.CANCELLED

    def _step(self) -> None:
        self.now += 0.01
        before = self.engine.passes
        for event in self.engine.step():
            assert event.request_id not in self.ends, "heard of after its end"
            if isinstance(event, FailedEvent):
                self.ends[event.request_id] = event
            elif isinstance(event, ScoresEvent):
                self.ends[event.request_id] = event.finish or event.logprobs
            else:
                self.tokens[event.request_id] += event.tokens
                if event.finish is not None:
                    self.ends[event.request_id] = event.finish
        if self.engine.passes == before + 1:
            self.times.add(self.engine.under_way[0], 0.01)

    # -- what must be true ------------------------------------------------------------------

    def check(self) -> None:
        pool, failed = self.engine.pool, []
        assert set(self.ends) == set(self.asked), "a request was lost"
        assert pool.live == 0, "a block leaked"
        assert pool.free + pool.cached == pool.total
        for name, request in self.asked.items():
            end = self.ends[name]
            if isinstance(end, FailedEvent):
                failed.append(name)
            elif isinstance(end, tuple):
                ids = request.ids
                assert request.score_from is not None
                expected = [
                    float(logits_after(ids[:i], self.windows).log_softmax(-1)[ids[i]])
                    for i in range(request.score_from, len(ids))
                ]
                assert list(end) == expected
            elif request.score_from is None:
                whole = truth(request, self.windows)
                made = self.tokens[name]
                assert made == whole[: len(made)], "a neighbour's bits changed"
                assert end is not Finish.LENGTH or len(made) == len(whole)
        if self.kind in PINNED:
            assert failed == ([str(self.victim)] if self.hits else [])
        else:
            assert len(failed) <= (self.kind in OF_THE_CACHE)
            assert not failed or self.hits
        assert all(
            self.ends[name] is not Finish.DEADLINE or "hang" in self.kind for name in self.asked
        )

    # -- faults -----------------------------------------------------------------------------

    def _due(self, rows: Sequence[Row] = (), *, pinned: bool = False) -> bool:
        """Whether the fault happens now."""
        if self.engine.steps < self.begins:
            return False
        theirs = any(row.sequence == self.victim for row in rows)
        due = theirs if pinned else not self.hits
        self.hits += due
        return due

    def _hang(self) -> None:
        """Time passes, and whoever looks at the engine would have seen that it stands still."""
        tokens, began = self.engine.under_way
        self.now += HANG_S
        assert self.now - began > self.times.limit_s(tokens)

    def _inject(self) -> None:
        part, _, what = self.kind.partition(" ")
        if part == "model":
            self._inject_model(what)
        elif part == "drafter":
            self._inject_drafter(what)
        elif part in ("allocate", "match", "seal"):
            call = getattr(self.engine.pool, part)

            def broken(*arguments: Any) -> Any:
                if self._due():
                    raise MemoryError(part)
                return call(*arguments)

            setattr(self.engine.pool, part, broken)

    def _inject_model(self, what: str) -> None:
        def before(rows: Sequence[Row]) -> None:
            if what.endswith("for drafts"):
                bad = [row for row in rows if row.drafts]
                if bad and self._due():
                    if what.startswith("raises"):
                        raise RuntimeError(what)
                    self.model.damage(bad[0])
            elif what in ("raises once", "hangs"):
                if self._due():
                    if what == "raises once":
                        raise RuntimeError(what)
                    self._hang()
            elif what in ("raises", "damages cache", "hangs, then raises"):
                bad = [row for row in rows if row.sequence == self.victim]
                if self._due(rows, pinned=True):
                    if what == "damages cache":
                        self.model.damage(bad[0])
                        return
                    if what.startswith("hangs"):
                        self._hang()
                    raise RuntimeError(what)

        def after(rows: Sequence[Row], results: list[RowResult]) -> list[RowResult]:
            if what == "miscounts once" and self._due():
                return results[:-1]
            if what not in ("NaN", "infinite", "wrong shape"):
                return results
            changed = []
            for row, result in zip(rows, results, strict=True):
                if row.outputs and self._due([row], pinned=True):
                    changed.append(_spoiled(result, what))
                else:
                    changed.append(result)
            return changed

        self.model.before, self.model.after = before, after

    def _sample(self, logits_mv: Any, choices: Any, **named: Any) -> list[SampledToken]:
        tokens = sample(logits_mv, choices, **named)
        part, _, what = self.kind.partition(" ")
        if part != "sampler":
            return tokens
        if what.endswith("once"):
            if not self._due():
                return tokens
            if what.startswith("raises"):
                raise RuntimeError(what)
            return tokens[:-1]
        victim = self.asked[str(self.victim)].sampling if self.victim else None
        hit = [sampling is victim for sampling, _ in choices]
        if self.engine.steps < self.begins or not any(hit):
            return tokens
        self.hits += 1
        if what == "raises":
            raise RuntimeError(what)
        wrong = {"NaN": {"logprob": float("nan")}, "wrong id": {"id": VOCAB}}[what]
        return [
            replace(token, **wrong) if bad else token
            for token, bad in zip(tokens, hit, strict=True)
        ]

    def _inject_drafter(self, what: str) -> None:
        drafter = self.drafter
        propose = drafter.propose

        def proposed(sequences: Sequence[tuple[Any, int]]) -> Any:
            good = propose(sequences)
            if self.engine.steps < self.begins:
                return good
            self.hits += 1
            if what == "raises":
                raise RuntimeError(what)
            if what == "hangs":
                self.now += HANG_S if self.hits == 1 else 0.0
                return good
            wrong: Any = {
                "of floats": lambda: [[0.5] for _ in good],
                "wrong id": lambda: [[VOCAB] for _ in good],
                "too long": lambda: [[0] * 100 for _ in good],
                "miscounts": lambda: good[:-1],
            }
            return wrong[what]()

        def raises(*_arguments: Any) -> None:
            if self.engine.steps >= self.begins:
                self.hits += 1
                raise RuntimeError(what)

        if what == "commit raises":
            drafter.commit = raises
        elif what == "forget raises":
            drafter.forget = raises
        else:
            drafter.propose = proposed


def _spoiled(result: RowResult, what: str) -> RowResult:
    assert result.logits_mv is not None
    if what == "wrong shape":
        return RowResult(result.logits_mv[:, :-1], result.scores)
    spoiled = result.logits_mv.clone()
    spoiled[0, 3] = torch.nan if what == "NaN" else -torch.inf
    return RowResult(spoiled, result.scores)


def run_worlds(seeds: range) -> Counter[str]:
    """One world a seed, three in ten with a fault; how many had each kind, and how many of those
    met it ("… hit")."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        kind = KINDS[(seed // 10 * 3 + seed % 10) % len(KINDS)] if seed % 10 < 3 else ""
        world = World(seed, kind)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(f"world {seed} ({kind or 'no fault'}): {error!r}") from error
        counts["worlds"] += 1
        counts["requests"] += len(world.asked)
        if kind:
            counts[kind] += 1
            counts[f"{kind}, hit"] += world.hits > 0
    return counts
