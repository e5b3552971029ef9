"""With several groups of layers, a sequence that takes blocks leaves one of each group to each that
is as urgent: or who decodes would be preempted by who comes after it."""

from __future__ import annotations

import pytest

from plinth.engine.blocks import BlockPool
from plinth.engine.request import Binding, Request, Sampling
from plinth.engine.scheduler import Limits, Scheduler
from plinth.engine.sequence import Sequence

SIZE = 4


def scheduler_of(total: int, windows: tuple[int, ...]) -> Scheduler:
    return Scheduler(BlockPool(total, SIZE, windows=windows), Limits(batch_tokens=64, running=8))


def added(scheduler: Scheduler, number: int, length: int) -> Sequence:
    ids = [number] * length
    request = Request(str(number), tuple(ids), Binding(""), Sampling(max_tokens=8))
    sequence = Sequence(number, request, ids, salt="")
    scheduler.add(sequence)
    return sequence


@pytest.mark.parametrize("windows", [(0,), (0, 8), (0, 8, 8), (8, 8)])
def test_a_long_prompt_leaves_a_block_of_each_group_to_each_of_its_peers(
    windows: tuple[int, ...],
) -> None:
    groups = len(windows)
    scheduler = scheduler_of(9 * groups, windows)
    short = [added(scheduler, number, SIZE - 1) for number in range(3)]
    long = added(scheduler, 3, 60)
    rows: dict[int, int] = {}
    for _ in range(3):
        rows = {row.sequence: len(row.tokens) for row in scheduler.schedule().rows}
        for sequence in (*short, long):
            if took := rows.get(sequence.number, 0):
                scheduler.advance(sequence, sequence.computed + took)
                sequence.ids += [7] * (sequence.pending == 0)
        if long.computed:
            break
    # Nine of each group: three are the short ones', and three are left for their next tokens.
    assert long.computed == 3 * SIZE
    assert scheduler.pool.available >= 3 * groups
    again = {row.sequence for row in scheduler.schedule().rows}
    assert {sequence.number for sequence in short} <= again
    assert scheduler.preemptions == 0


@pytest.mark.parametrize("windows", [(0,), (0, 8), (0, 8, 8), (8, 8)])
@pytest.mark.parametrize("spare", [0, 1])
def test_one_that_waits_is_admitted_where_its_peers_have_blocks_left(
    windows: tuple[int, ...], spare: int
) -> None:
    groups = len(windows)
    # Two of each for the one that runs, and one of each for the next token of either; or one less.
    scheduler = scheduler_of(4 * groups - 1 + spare, windows)
    first = added(scheduler, 0, SIZE + 1)
    scheduler.schedule()
    scheduler.advance(first, SIZE + 1)
    first.ids.append(7)
    second = added(scheduler, 1, 1)
    assert scheduler.pool.available == 2 * groups - 1 + spare
    scheduler.schedule()
    assert (second in scheduler.running) == bool(spare)
    assert scheduler.preemptions == 0
