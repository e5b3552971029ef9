"""Scheduler and blocks through random steps, without a model: no leak, nobody starves."""

from __future__ import annotations

import random

import pytest

from plinth.engine.blocks import BlockPool
from plinth.engine.plan import Plan
from plinth.engine.request import Binding, Request, Sampling
from plinth.engine.scheduler import Limits, Scheduler
from plinth.engine.sequence import Sequence
from plinth.shared.errors import ResourceExhausted


class World:
    """A scheduler with a model made of dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.size = self.dice.choice([1, 2, 4, 16])
        positions = self.dice.choice([32, 64])
        blocks = -(-positions // self.size) * self.dice.choice([1, 2, 5])
        self.pool = BlockPool(blocks, self.size, prefix_cache=self.dice.random() < 0.8)
        self.limits = Limits(
            batch_tokens=self.dice.choice([1, 5, 40]),
            running=self.dice.choice([1, 3, 8]),
            waiting=12,
            positions=positions,
        )
        self.scheduler = Scheduler(self.pool, self.limits)
        self.live: dict[int, Sequence] = {}
        self.number = 0
        self.ended = 0

    def add(self) -> None:
        self.number += 1
        length = self.dice.randrange(1, self.limits.positions)
        ids = [self.dice.randrange(2) for _ in range(length)]  # a tiny alphabet: prefixes meet
        sampling = Sampling(max_tokens=self.dice.randrange(1, 20))
        score = self.dice.randrange(1, length) if length > 1 and self.dice.random() < 0.2 else None
        request = Request(
            str(self.number),
            tuple(ids),
            Binding(""),
            sampling,
            priority=self.dice.choice([0, 0, 1]),
            score_from=score,
        )
        sequence = Sequence(self.number, request, ids, salt=self.dice.choice("ab"))
        try:
            self.scheduler.add(sequence)
        except ResourceExhausted:
            return
        self.live[sequence.number] = sequence

    def step(self) -> None:
        for sequence in self.scheduler.running:
            sequence.drafts = []
            if sequence.pending == 1 and not sequence.scoring and self.dice.random() < 0.3:
                count = min(self.dice.randrange(4), sequence.allowance(self.limits.positions) - 1)
                if count > 0 and self.scheduler.reserve(sequence, len(sequence.ids) + count):
                    sequence.drafts = [self.dice.randrange(2) for _ in range(count)]
        plan = self.scheduler.schedule()
        self.check_plan(plan)
        for row in plan.rows:
            self.commit(plan, row.sequence)

    def check_plan(self, plan: Plan) -> None:
        assert plan.tokens <= self.limits.batch_tokens
        assert len({row.sequence for row in plan.rows}) == len(plan.rows)
        written: set[int] = set()
        for row in plan.rows:
            end = row.start + len(row.tokens)
            blocks = set(row.blocks[row.start // self.size : -(-end // self.size)])
            assert len(row.blocks) * self.size >= end
            for block in blocks:  # nobody else can write or even read what is written here
                assert self.pool.holders(block) == 1
                assert not self.pool.is_sealed(block)
            assert not blocks & written
            written |= blocks
            sequence = self.live[row.sequence]
            known = sequence.ids[row.start : row.start + len(row.tokens) - row.drafts]
            assert list(row.tokens[: len(known)]) == known

    def commit(self, plan: Plan, number: int) -> None:
        row = next(r for r in plan.rows if r.sequence == number)
        sequence = self.live[number]
        computed = row.start + len(row.tokens) - row.drafts
        done = sequence.scoring and computed == len(sequence.ids)
        accepted = 0
        if row.outputs:
            accepted = self.dice.randrange(row.drafts + 1)
            drafts = row.tokens[len(row.tokens) - row.drafts :]
            sequence.ids += [*drafts[:accepted], self.dice.randrange(2)]
            done = sequence.allowance(self.limits.positions) <= 0 or self.dice.random() < 0.05
        self.scheduler.advance(sequence, computed + accepted)
        if done:
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        del self.live[sequence.number]
        self.ended += 1

    def check(self) -> None:
        pool = self.pool
        assert pool.free + pool.cached + pool.live == pool.total
        held: dict[int, int] = {}
        for sequence in self.live.values():
            for block in sequence.blocks:
                held[block] = held.get(block, 0) + 1
        assert held == {b: pool.holders(b) for b in range(pool.total) if pool.holders(b)}


def _drive(seed: int, steps: int) -> None:
    world = World(seed)
    for _ in range(steps):
        if world.dice.random() < 0.4:
            world.add()
        if world.live and world.dice.random() < 0.03:
            world.end(world.dice.choice(list(world.live.values())))
        world.step()
        world.check()
    budget = 20_000
    while world.live and budget:
        world.step()
        world.check()
        budget -= 1
    assert not world.live, "a request never ended"
    assert world.pool.live == 0
    assert world.ended > 0


@pytest.mark.parametrize("seed", range(12))
def test_random_worlds(seed: int) -> None:
    _drive(seed, 1_000)


def test_a_hundred_thousand_steps() -> None:
    for seed in range(100, 150):
        _drive(seed, 2_000)
