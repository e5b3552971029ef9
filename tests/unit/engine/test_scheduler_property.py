"""Scheduler and blocks through random steps, without a model: no leak, priorities hold, nobody
starves; and figures of one prompt beside another."""

from __future__ import annotations

import random

import pytest

from plinth.engine.blocks import BlockPool
from plinth.engine.plan import Plan, Row
from plinth.engine.request import Binding, Request, Sampling
from plinth.engine.scheduler import Limits, Scheduler
from plinth.engine.sequence import Sequence
from plinth.engine.tables import blocks_needed
from plinth.shared.errors import ResourceExhausted

# Of groups of layers: Llama's, one window for all, Gemma's pattern, two widths.
WINDOWS = ((0,), (0,), (5,), (1,), (0, 6, 6), (0, 0, 20), (3, 17))


class World:
    """A scheduler with a model made of dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.size = self.dice.choice([1, 2, 4, 16])
        positions = self.dice.choice([32, 64])
        self.windows = self.dice.choice(WINDOWS)
        alone = blocks_needed(-(-positions // self.size), self.size, self.windows)
        blocks = alone * self.dice.choice([1, 2, 5])
        cached = self.dice.random() < 0.8
        self.pool = BlockPool(blocks, self.size, windows=self.windows, prefix_cache=cached)
        self.limits = Limits(
            batch_tokens=self.dice.choice([1, 5, 40]),
            running=self.dice.choice([1, 3, 8]),
            waiting=12,
            positions=positions,
            priority_aging=self.dice.choice([0, 0, 20]),
        )
        self.scheduler = Scheduler(self.pool, self.limits)
        self.live: dict[int, Sequence] = {}
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.requests: list[Sequence] = []
        self.number = self.stood_back = 0
        self.ended = self.refused = self.outranked = 0

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
            priority=self.dice.choice([-1, 0, 0, 1, 7]),
            score_from=score,
        )
        sequence = Sequence(self.number, request, ids, salt=self.dice.choice("ab"))
        before = [s for s in self.scheduler.waiting if s.request.priority >= request.priority]
        try:
            displaced = self.scheduler.add(sequence)
        except ResourceExhausted:
            # Those of lower priority keep nobody out (a level gained by waiting counts as one).
            assert len(before) >= self.limits.waiting or self.limits.priority_aging
            self.refused += 1
            return
        self.live[sequence.number] = sequence
        self.requests.append(sequence)
        if displaced is not None:
            assert not displaced.admitted
            assert displaced.request.priority <= request.priority or self.limits.priority_aging
            self.end(displaced)

    def step(self) -> None:
        for sequence in self.scheduler.running:
            sequence.drafts = []
            if sequence.pending == 1 and not sequence.scoring and self.dice.random() < 0.3:
                count = min(self.dice.randrange(4), sequence.allowance(self.limits.positions) - 1)
                if count > 0 and self.scheduler.reserve_spare(sequence, len(sequence.ids) + count):
                    sequence.drafts = [self.dice.randrange(2) for _ in range(count)]
        waited = {s.number: s for s in self.scheduler.waiting}
        plan = self.scheduler.schedule()
        self.check_plan(plan)
        self.check_priorities(plan, waited)
        for row in plan.rows:
            self.commit(plan, row.sequence)

    def check_plan(self, plan: Plan) -> None:
        assert plan.tokens <= self.limits.batch_tokens
        assert len({row.sequence for row in plan.rows}) == len(plan.rows)
        written: set[int] = set()
        for row in plan.rows:
            for window, (skipped, table) in zip(self.windows, row.tables, strict=True):
                blocks = self.check_table(row, window, skipped, table)
                assert not blocks & written
                written |= blocks
            sequence = self.live[row.sequence]
            known = sequence.ids[row.start : row.start + len(row.tokens) - row.drafts]
            assert list(row.tokens[: len(known)]) == known

    def check_table(self, row: Row, window: int, skipped: int, table: tuple[int, ...]) -> set[int]:
        """It has all that the row reads and no more; those that it writes."""
        size, end = self.size, row.start + len(row.tokens)
        first_seen = max(0, row.start + 1 - window) if window else 0
        assert skipped == first_seen // size
        assert (skipped + len(table)) * size >= end
        if window:  # flat, whatever the length
            assert len(table) * size <= window + len(row.tokens) + 2 * size
        blocks = set(table[row.start // size - skipped : -(-end // size) - skipped])
        for block in blocks:  # nobody else can write or even read what is written here
            assert self.pool.holders(block) == 1
            assert not self.pool.is_sealed(block)
        for number, block in enumerate(table[: row.start // size - skipped], skipped):
            self.check_content(row, number, block)
        return blocks

    def check_content(self, row: Row, number: int, block: int) -> None:
        """A block that was computed before holds what stands there in this sequence, with all that
        came before it."""
        known = tuple(self.live[row.sequence].ids[: (number + 1) * self.size])
        salt = self.live[row.sequence].salt
        assert self.content[block] == (salt, known)

    def check_priorities(self, plan: Plan, waited: dict[int, Sequence]) -> None:
        """Nobody waits while somebody of lower priority runs; and the most urgent is in the plan,
        if it is not a long prompt that stands back for one step."""
        scheduler = self.scheduler
        if not self.limits.priority_aging:
            for left in scheduler.waiting:
                lower = [s for s in scheduler.running if s.request.priority < left.request.priority]
                held = [block for s in lower for block in s.tables.held()]
                alone = {b for b in held if held.count(b) == self.pool.holders(b)}
                assert not lower or len(alone) + self.pool.available < self.pool.groups
            came = [s for s in scheduler.running if s.number in waited]
            self.outranked += any(
                gone.request.priority < one.request.priority
                for one in came
                for gone in scheduler.waiting
                if gone.number not in waited
            )
        assert not self.live or plan.rows
        if scheduler.running and scheduler.running[0].number not in {r.sequence for r in plan.rows}:
            assert self.stood_back != scheduler.running[0].number
            self.stood_back = scheduler.running[0].number
        else:
            self.stood_back = 0

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
        for skipped, table in row.tables:
            for number in range(row.start // self.size, (computed + accepted) // self.size):
                known = tuple(sequence.ids[: (number + 1) * self.size])
                self.content[table[number - skipped]] = (sequence.salt, known)
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
            for block in sequence.tables.held():
                held[block] = held.get(block, 0) + 1
        assert held == {b: pool.holders(b) for b in range(pool.total) if pool.holders(b)}


def _drive(seed: int, steps: int) -> World:
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
    return world


@pytest.mark.parametrize("seed", range(12))
def test_random_worlds(seed: int) -> None:
    _drive(seed, 1_000)


def test_a_hundred_thousand_steps() -> None:
    worlds = [_drive(seed, 2_000) for seed in range(100, 150)]
    for windows in WINDOWS:
        alike = [world for world in worlds if world.windows == windows]
        assert sum(world.scheduler.preemptions for world in alike) > 50
        hits = sum(s.usage.cached > 0 for world in alike for s in world.requests)
        assert hits > 20, windows
    assert sum(world.scheduler.preemptions for world in worlds) > 1_000
    assert sum(world.outranked for world in worlds) > 1_000, "a newcomer took somebody's place"
    assert sum(world.refused for world in worlds) > 100


class Served:
    """A scheduler whose every prompt and token is computed at once, as a model would."""

    def __init__(self, **limits: int) -> None:
        self.limits = Limits(**{"batch_tokens": 512, "positions": 16_384} | limits)
        self.scheduler = Scheduler(BlockPool(4096, 16), self.limits)
        self.number = 0
        self.displaced: list[Sequence] = []
        self.made: dict[int, int] = {}

    def add(self, length: int, priority: int = 0, tokens: int = 10_000) -> Sequence:
        self.number += 1
        request = Request(
            str(self.number),
            tuple(range(self.number, self.number + length)),  # none shares a prefix
            Binding(""),
            Sampling(max_tokens=tokens),
            priority=priority,
        )
        sequence = Sequence(self.number, request, list(request.ids), salt="")
        gone = self.scheduler.add(sequence)
        if gone is not None:
            self.scheduler.remove(gone)
            self.displaced.append(gone)
        self.made[sequence.number] = 0
        return sequence

    def step(self) -> Plan:
        live = {s.number: s for s in self.scheduler.sequences()}
        plan = self.scheduler.schedule()
        for row in plan.rows:
            sequence = live[row.sequence]
            if row.outputs:
                sequence.ids.append(0)
                self.made[row.sequence] += 1
            self.scheduler.advance(sequence, row.start + len(row.tokens))
            if sequence.made >= sequence.request.sampling.max_tokens:
                self.scheduler.remove(sequence)
        return plan

    def planned(self, sequence: Sequence) -> bool:
        return sequence.number in {row.sequence for row in self.step().rows}


@pytest.mark.parametrize("priority", [-1, 0, 1])
def test_beside_a_long_prompt_a_decode_misses_no_step(priority: int) -> None:
    """Whatever the prompt's priority."""
    served = Served()
    decode = served.add(5)
    served.step()
    long = served.add(8_192, priority)
    steps = 0
    while served.made[long.number] == 0:
        assert served.planned(decode)
        steps += 1
    assert steps == -(-8_192 // 511), "and the prompt has all the rest"


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("arrival", range(1, 6))
def test_beside_a_long_prompt_a_chat_has_its_first_token_within_three_steps(
    others: int, arrival: int
) -> None:
    """And in a step that is little longer than its own would be, unless the last one was so too."""
    served = Served()
    for _ in range(1 + others):
        served.add(8_192)
    for _ in range(arrival):
        served.step()
    chat = served.add(5)
    plan = served.step()
    assert served.made[chat.number] == 1
    assert plan.tokens <= 5 + others
    second = served.add(5)
    sizes = [served.step().tokens for _ in range(3)]
    assert served.made[second.number] >= 1
    assert max(sizes) == 512, "the long ones go on all the while"


def test_many_short_prompts_do_not_hold_a_long_one_up() -> None:
    """Sixteen chats of 60 tokens come at every step for ever; the long one has half of each step
    that is not theirs."""
    served = Served(running=2_000, waiting=100_000)
    long = served.add(8_192, tokens=1)
    steps = 0
    while served.made[long.number] == 0:
        for _ in range(16):
            served.add(60, tokens=1)
        served.step()
        steps += 1
    assert steps <= 2 * -(-8_192 // 256) + 2


@pytest.mark.parametrize("kind", ["places", "blocks", "prompts"])
def test_a_higher_priority_runs_within_one_step_of_its_arrival(kind: str) -> None:
    served = Served(running=4 if kind == "places" else 64)
    if kind == "blocks":
        served.scheduler.pool = BlockPool(40, 16)
    length = {"places": 5, "blocks": 150, "prompts": 8_000}[kind]
    low = [served.add(length) for _ in range(4)]
    for _ in range(6):
        served.step()
    urgent = served.add(300, priority=1)
    assert served.planned(urgent)
    for _ in range(3):
        served.step()
    assert served.made[urgent.number] >= 1
    if kind != "prompts":
        assert any(s in served.scheduler.waiting for s in low)
        assert low[0] in served.scheduler.running, "the least urgent goes first"


def test_a_full_queue_takes_who_is_more_urgent() -> None:
    """256 items that are scored wait; a chat is not refused, and is served before them."""
    served = Served(running=4, waiting=256)
    for _ in range(260):  # there are four places besides
        served.add(20, priority=-1)
    with pytest.raises(ResourceExhausted, match="260 requests wait"):
        served.add(20, priority=-1)
    chat = served.add(5)
    assert served.planned(chat)


def test_the_queue_is_bounded_whatever_priorities_come() -> None:
    """Who is displaced is the least urgent, and has not begun."""
    served = Served(running=4, waiting=16)
    for priority in range(-100, 100):
        for _ in range(16):
            served.add(5, priority)
            assert len(served.scheduler.waiting) <= 2 * 16 + 4
    assert len(served.displaced) == 200 * 16 - (2 * 16 + 4)
    assert {s.request.priority for s in served.scheduler.waiting} == {97, 98, 99}


@pytest.mark.parametrize(("chats", "length", "prompt"), [(41, 90, 1_900), (64, 100, 4_000)])
def test_an_urgent_prompt_takes_the_blocks_that_it_needs(
    chats: int, length: int, prompt: int
) -> None:
    """Beside sequences of lower priority that hold them all, it is as fast as alone."""
    served = Served()
    served.scheduler.pool = BlockPool(chats * -(-(length + 10) // 16), 16)
    for _ in range(chats):
        served.add(length)
    for _ in range(30):
        served.step()
    urgent, steps = served.add(prompt, priority=1), 0
    while served.made[urgent.number] == 0:
        served.step()
        steps += 1
    assert steps <= -(-prompt // (512 - chats)) + 1


def test_prompts_have_half_of_each_step_however_many_decode() -> None:
    served = Served(batch_tokens=64, running=64)
    for _ in range(80):
        served.add(3)
    for _ in range(20):
        served.step()
    urgent, steps = served.add(500, priority=1), 0
    while served.made[urgent.number] == 0:
        served.step()
        steps += 1
    assert steps <= -(-500 // 32) + 1


def test_drafts_take_no_block_that_a_neighbour_needs() -> None:
    served = Served()
    served.scheduler.pool = BlockPool(10, 1)
    one, other = served.add(3), served.add(3)
    served.step()
    assert served.scheduler.pool.available == 4
    assert not served.scheduler.reserve_spare(one, len(one.ids) + 3)
    assert served.scheduler.reserve_spare(one, len(one.ids) + 1)
    assert served.scheduler.pool.reserve(other.tables, len(other.ids))


@pytest.mark.parametrize("aging", [0, 16])
def test_the_lowest_priority_waits_for_a_bounded_time_when_asked_to_be_fair(aging: int) -> None:
    """Two places, and four chats at every step: more than can ever be served."""
    served = Served(running=2, waiting=100_000, priority_aging=aging)
    served.add(5, tokens=3)
    served.step()
    low = served.add(5, priority=-3, tokens=3)
    waited = 0
    while served.made[low.number] < 3 and waited < 400:
        for priority in (0, 0, 1, 2):
            served.add(5, priority, tokens=3)
        served.step()
        waited += 1
    # It counts as one that came 5 levels x 16 steps later at the highest priority: those that came
    # until then, one in four of them urgent enough for each level, are served before.
    assert waited == 400 if not aging else waited < 400
