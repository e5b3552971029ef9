import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.trainer.data.packing import best_fit
from plinth.trainer.data.sampler import BatchSampler, Shuffle


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 1000))
@settings(max_examples=60)
def test_every_epoch_is_a_permutation(n, seed, epoch):
    order = Shuffle(n, seed, epoch)(np.arange(n))
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ_and_spread():
    n = 1000
    orders = [Shuffle(n, seed, epoch)(np.arange(n)) for seed in (0, 1) for epoch in (0, 1)]
    for one in orders:
        assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 0.12
        assert sum(o is not one and (o == one).mean() > 0.02 for o in orders) == 0


def test_the_order_never_changes():
    # Written down once: a resumed run of an older Plinth must meet the same batches.
    assert Shuffle(10, 7, 3)(np.arange(10)).tolist() == FROZEN


FROZEN = [8, 3, 9, 5, 6, 4, 0, 2, 1, 7]


def test_positions_are_addressable():
    sampler = BatchSampler(37, seed=5)
    whole = sampler.at(0, 37 * 3)
    parts = [sampler.at(start, 10) for start in range(0, 110, 10)]
    assert np.concatenate(parts).tolist() == whole[:110].tolist()
    for epoch in range(3):
        assert sorted(whole[37 * epoch : 37 * (epoch + 1)].tolist()) == list(range(37))


@given(st.lists(st.integers(1, 64), max_size=200))
@settings(max_examples=60)
def test_packing_keeps_everything_and_overfills_nothing(lengths):
    bins = best_fit(enumerate(lengths), 64)
    assert sorted(item for b in bins for item in b) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in b) for b in bins]
    assert all(load <= 64 for load in loads)
    # Any-fit algorithms never have two bins that would fit one.
    assert sum(load <= 32 for load in loads) <= 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        best_fit([(0, 65)], 64)
