"""One worker works long, and the others wait: however long, as long as all are alive."""

from __future__ import annotations

import time
from threading import Event

import pytest
import torch.distributed as dist

import policy_job
import trainings
from patience import PATIENCE_S
from plinth.trainer import checkpoint
from plinth.trainer.loop import Group, group, train
from plinth.trainer.loop.job_folder import JobFolder
from worker_groups import run_group

BEATS = 3  # sums of the whole group that must go on while one worker is busy


class Busy:
    """Work that ends once the group has made some sums meanwhile, and else not at all."""

    def __init__(self):
        self.sums, self.turn = 0, Event()
        real = dist.all_reduce

        def counted(*args, **kwargs):
            real(*args, **kwargs)
            self.sums += 1
            self.turn.set()

        dist.all_reduce = counted

    def __call__(self, *_):
        wanted, until = self.sums + BEATS, time.monotonic() + PATIENCE_S / 2
        while self.sums < wanted:
            self.turn.clear()
            assert self.turn.wait(max(0.0, until - time.monotonic())), "the group only waits"


def one_works(rank, world):
    group._BEAT_S = 0.01
    busy, mine = Busy(), Group(rank, world)
    for who in range(world):
        with mine.patiently():
            if rank == who:
                busy()
        assert mine.sum([rank]) == [sum(range(world))]


def test_whoever_works_the_others_wait_for_it(tmp_path):
    run_group(3, tmp_path, one_works)


def one_fails(rank, world):
    group._BEAT_S = 0.01
    mine = Group(rank, world)
    if rank == 1:
        with pytest.raises(OSError, match="unreadable"), mine.patiently():
            raise OSError("unreadable")
        return
    # The one that failed ends, and with it its connections.
    with pytest.raises(RuntimeError), mine.patiently():
        pass


def test_a_worker_that_fails_is_not_waited_for(tmp_path):
    run_group(3, tmp_path, one_fails)


def trained(rank, world, jobs):
    """Whole runs, begun twice, in which every long part takes long for one worker."""
    from plinth.trainer.loop import setup
    from plinth.trainer.objectives import bits_per_byte, dpo, reward

    group._BEAT_S = 0.01
    busy = Busy()
    places = [
        (0, checkpoint.os, "fsync"),
        (1, setup, "make_objective"),
        (1, setup, "make_decoder"),
        (0, setup, "load_checkpoint"),
        (1, bits_per_byte, "nll_sum"),  # evaluations; the reference of DPO
        (1, dpo, "pieces"),
        (1, reward, "pieces"),
    ]
    for who, owner, name in places:
        if rank == who:
            real = getattr(owner, name)

            def slow(*args, real=real):
                busy()
                return real(*args)

            setattr(owner, name, slow)
    for folder, config in jobs:
        job = JobFolder(folder)
        assert train(config, job, Group(rank, world)) == "succeeded", job.outcome()
        dist.barrier()
        if rank == 0:
            job.begin()
        dist.barrier()
        assert train(config, job, Group(rank, world)) == "succeeded", job.outcome()
        assert job.progress().note.startswith("resumed") or "accuracy" in job.progress().note


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trainings.dataset(tmp_path_factory.mktemp("plain"), trainings.texts(60))


def test_no_part_of_a_run_ends_the_group_by_taking_long(plain, tmp_path):
    pairs, start, _ = policy_job.made(tmp_path / "made")
    changes = {"workers": 2, "steps": 1, "checkpoint_every": 1}
    tuned = {
        "init_from": str(start),
        "model": None,
        "sequence_length": policy_job.LENGTH,
        **changes,
    }
    jobs = [
        (trainings.job(tmp_path / config.objective, config), config)
        for config in (
            trainings.config(plain, **changes),
            trainings.config(pairs, objective="dpo", **tuned),
            trainings.config(pairs, objective="reward", **tuned),
        )
    ]
    run_group(2, tmp_path, trained, jobs)


def slow_for_seconds(rank, world, folder, config, timeout_s):
    if rank == 0:
        real, waited = checkpoint.os.fsync, Event()

        def slow(handle):
            waited.wait(2 * timeout_s)
            waited.set()
            real(handle)

        checkpoint.os.fsync = slow
    assert train(config, JobFolder(folder), Group(rank, world)) == "succeeded"


@pytest.mark.slow
def test_a_checkpoint_that_takes_longer_than_a_sum_may_wait(plain, tmp_path):
    config = trainings.config(plain, workers=2, steps=2, checkpoint_every=1)
    folder = trainings.job(tmp_path / "a", config)
    run_group(2, tmp_path, slow_for_seconds, folder, config, 4.0, timeout_s=4.0)
