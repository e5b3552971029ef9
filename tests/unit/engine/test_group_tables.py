"""Block tables of groups with windows: what is kept, given up and found again."""

from __future__ import annotations

import pytest

from plinth.engine.blocks import BlockPool
from plinth.engine.memory import block_count, fewest
from plinth.engine.scheduler import Limits
from plinth.engine.tables import Tables, blocks_needed, most_positions, unseen
from plinth.kernels.paged import KvCache
from plinth.kernels.specs import StateSpec, state_groups


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize("window", [0, 1, 2, 5, 16, 17, 40])
def test_what_no_token_sees_is_given_up_and_nothing_else(size: int, window: int) -> None:
    most = 0
    for position in range(100):
        first = max(0, position + 1 - window) if window else 0
        gone = unseen(window, position, size)
        assert gone * size <= first < (gone + 1) * size
        most = max(most, position // size + 1 - gone)
        assert most <= blocks_needed(position // size + 1, size, [window])
    if window:
        assert blocks_needed(1000, size, [window]) <= most + 1


def test_the_longest_sequence_that_blocks_are_enough_for() -> None:
    for windows in ((0,), (7,), (0, 7, 7), (0, 0, 30)):
        for total in range(1, 60):
            longest = most_positions(total, 4, windows, 100)
            assert longest == 0 or blocks_needed(-(-longest // 4), 4, windows) <= total
            assert longest == 100 or blocks_needed(longest // 4 + 1, 4, windows) > total


def _computed(pool: BlockPool, ids: list[int], chunk: int) -> tuple[Tables, list[bytes]]:
    tables, keys = pool.match("", ids, len(ids) - 1)
    done, size = tables.reach * pool.block_size, pool.block_size
    while done < len(ids):
        done = min(done + chunk, len(ids))
        assert pool.reserve(tables, done)
        for number in range(len(keys), done // size):
            parent = keys[-1] if keys else pool.root("")
            part = ids[number * size : (number + 1) * size]
            keys.append(pool.seal(tables.of(number), parent, part))
        pool.trim(tables, done)
    return tables, keys


def test_a_prefix_is_known_as_far_as_every_group_has_what_the_next_token_sees() -> None:
    """A window's blocks at the end of the prefix do; where one of them went, a shorter prefix that
    has all of its own; and none without the blocks that layers without a window need."""
    pool = BlockPool(64, 4, windows=(0, 6))
    ids = list(range(40))
    tables, _ = _computed(pool, ids, 4)
    assert (tables.skipped, tables.reach) == ([0, 8], 10)
    full, window = [list(blocks) for blocks in tables.blocks]
    assert (len(full), len(window)) == (10, 2)
    pool.release(tables.held())
    again, keys = pool.match("", [*ids, 99], 40)
    assert (again.reach, again.skipped, len(keys)) == (10, [0, 8], 10)
    assert again.blocks == [full, window]
    pool.release(again.held())
    pool.unseal(window[1:])
    # 36 tokens: the next sees from 31 on, block 7, which the window had left behind already.
    shorter, _ = pool.match("", [*ids, 99], 40)
    assert (shorter.reach, shorter.skipped) == (9, [0, 7])
    assert shorter.blocks[0] == full[:9]
    pool.release(shorter.held())
    pool.unseal([full[3]])
    shortest, _ = pool.match("", [*ids, 99], 40)
    assert (shortest.reach, shortest.skipped) == (3, [0, 1])
    pool.release(shortest.held())
    assert pool.live == 0


def test_groups_do_not_find_one_anothers_blocks() -> None:
    pool = BlockPool(64, 2, windows=(0, 0))
    one, _ = _computed(pool, [1, 2, 3, 4], 4)
    pool.release(one.held())
    pool.unseal(one.blocks[1])
    found, _ = pool.match("", [1, 2, 3, 4, 5], 4)
    assert found.reach == 0


def test_a_window_is_flat_to_32768_tokens() -> None:
    """And a model of Gemma 3's pattern holds its full layers' blocks and its windows'."""
    for chunk in (1, 512):
        pool = BlockPool(8192, 16, windows=(512,))
        most = 0
        tables = Tables()
        for done in range(chunk, 32_769, chunk):
            assert pool.reserve(tables, done)
            most = max(most, pool.live)
            pool.trim(tables, done)
            assert len(tables.held()) <= 512 // 16 + 1
        assert most <= -(-(512 + chunk) // 16) + 1
    states = [StateSpec(4, 8, 0 if layer % 6 == 5 else 512) for layer in range(24)]
    windows = [group.window for group in state_groups(states)]
    assert sorted(windows) == [0, 512, 512, 512, 512, 512]
    pool, tables = BlockPool(8192, 16, windows=windows, prefix_cache=False), Tables()
    for done in range(512, 32_769, 512):
        assert pool.reserve(tables, done)
        pool.trim(tables, done)
        assert pool.live <= done // 16 + 5 * (512 // 16 + 1)
    assert pool.live == pool.total - pool.free


@pytest.mark.parametrize(
    ("windows", "size", "count"),
    [
        ([0] * 30, 30, 1),
        ([7] * 5, 5, 1),
        ([7, 7, 7, 7, 7, 0] * 4 + [7, 7], 4, 7),  # Gemma 3's 1B: two places of 28 stay empty
        ([7, 7, 7, 7, 7, 0] * 8, 8, 6),
        ([0] * 21 + [7] * 7, 7, 4),
        ([0] + [7] * 29, 5, 7),
    ],
)
def test_layers_form_groups_of_about_one_size(windows: list[int], size: int, count: int) -> None:
    states = [StateSpec(2, 8, window) for window in windows]
    groups = state_groups(states)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(len(windows)))
    assert all(windows[layer] == group.window for group in groups for layer in group.layers)
    assert (max(len(group.layers) for group in groups), len(groups)) == (size, count)
    cache = KvCache(states, 3, 4)
    assert KvCache.bytes_per_block(states, 4) == size * 2 * 2 * 8 * 4 * 4
    for layer, group in enumerate(cache.group_of):  # no two layers of a group share memory
        shared = [n for n, keys in enumerate(cache.keys) if keys is cache.keys[layer]]
        assert [n for n in shared if cache.group_of[n] == group] == [layer]


def test_layers_whose_tokens_differ_in_size_are_refused() -> None:
    with pytest.raises(ValueError, match="no common block"):
        state_groups([StateSpec(2, 8), StateSpec(4, 8, 3)])


def test_a_cache_has_what_fits_the_memory_and_no_more_than_can_be_used() -> None:
    limits = Limits(batch_tokens=64, running=3, positions=1000)
    plain, windowed = [StateSpec(2, 8)] * 6, [StateSpec(2, 8, 100)] * 6
    each = KvCache.bytes_per_block(plain, 16)
    assert each == 6 * 2 * 2 * 8 * 16 * 4
    assert block_count(plain, limits, 16, 10**9, 4) == 3 * 63
    assert block_count(plain, limits, 16, 10 * each + 1, 4) == 10
    # Seven blocks hold a window of 100 tokens, one more as it moves on; and a step's prompts.
    assert block_count(windowed, limits, 16, 10**9, 4) == 3 * 8 + 4
    assert fewest(plain, limits, 16) == 2
    assert fewest([*plain, *windowed], limits, 16) == 4


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("windows", [(0,), (1,), (5,), (0, 5), (0, 1, 30)])
def test_no_model_is_refused_for_want_of_memory_that_could_not_be_used(
    size: int, windows: tuple[int, ...]
) -> None:
    """One sequence at a time, of a context that may be within one block."""
    states = [StateSpec(2, 8, window) for window in windows]
    each = KvCache.bytes_per_block(states, size)
    for positions in (1, 15, 16, 17, 40):
        limits = Limits(batch_tokens=1, running=1, positions=positions)
        least = fewest(states, limits, size)
        for memory in (None, 10**9, least * each):
            assert block_count(states, limits, size, memory, 4) >= least
        assert block_count(states, limits, size, least * each - 1, 4) < least
        groups = [group.window for group in state_groups(states)]
        assert most_positions(least, size, groups, positions) >= min(size, positions)
