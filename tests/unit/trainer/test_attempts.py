"""Attempts at jobs, in any order: none harms a later one, and no checkpoint is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.shared.errors import FailedPrecondition, ResourceExhausted
from plinth.trainer.attempts import Attempt
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.loop.job_folder import JobFolder


class Config:
    """As much of a TrainConfig as an attempt looks at."""

    def digest(self):
        return "sha256:c"


def checkpointed(attempt, step):
    """As a run writes one, if its folder is still there."""
    folder = attempt.folder.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"config_digest": "sha256:c", "step": step}))


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "control"
    }


def newest(places):
    steps = [int(found.name[5:]) for place in places for found in checkpoints(place)]
    return max(steps, default=-1)


actions = st.sampled_from(["begin", "take over", "checkpoint", "leave", "finish", "stop"])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 3), actions), max_size=30))
def test_no_attempt_touches_a_later_one_and_none_loses_a_checkpoint(history):
    """Attempts 0 to 3 at one job act in any order, also long after a later one has begun."""
    with TemporaryDirectory() as folder:
        jobs = Path(folder)
        attempts = [Attempt(jobs, "j", fence) for fence in range(4)]
        begun, finished = set(), False
        for turn, (number, action) in enumerate(history):
            attempt = attempts[number]
            if action == "begin":
                attempt.begin()
                begun.add(number)
            if number not in begun or not attempt.folder.path.is_dir():
                continue
            later = {n: contents(a.folder.path) for n, a in enumerate(attempts) if n > number}
            before = newest(a.folder.checkpoints for a in attempts)
            if action == "take over":
                had = newest([attempt.folder.checkpoints])
                attempt.take_over("inputs", Config())
                mine = newest(a.folder.checkpoints for a in attempts[: number + 1])
                assert newest([attempt.folder.checkpoints]) == (had if had >= 0 else mine)
            elif action == "checkpoint":
                checkpointed(attempt, turn)
            elif action == "stop":
                attempt.folder.request("pause")
            elif action in ("leave", "finish"):
                attempt.leave(finished=action == "finish")
                finished |= action == "finish"
            for n, kept in later.items():
                assert contents(attempts[n].folder.path) == kept, (number, action, n)
            if not finished:
                assert newest(a.folder.checkpoints for a in attempts) >= before, action


def test_a_successor_stops_those_before_it_and_no_other(tmp_path):
    first, second = Attempt(tmp_path, "j", 3), Attempt(tmp_path, "j", 10)
    other = Attempt(tmp_path, "j.3", 4)  # another job, whose id looks like it
    first.begin()
    other.begin()
    second.begin()
    assert first.folder.requested() == "pause"
    assert second.folder.requested() is None
    assert other.folder.requested() is None
    first.begin()  # late: it does not stop the one after it
    assert second.folder.requested() is None


def test_what_a_backup_put_back_is_gone_on_from(tmp_path):
    checkpoint = tmp_path / "j" / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    attempt = Attempt(tmp_path, "j", 1)
    attempt.begin()
    attempt.take_over("inputs", Config())
    assert [path.name for path in checkpoints(attempt.folder.checkpoints)] == ["step-00000007"]
    attempt.leave(finished=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["checkpoints", "attempt-1/checkpoints"])
def test_what_another_version_of_the_code_made_is_begun_anew(tmp_path, place):
    """Its digest of the same job is another; the run would refuse the checkpoint for good."""
    older = tmp_path / "j" / place / "step-00000007"
    older.mkdir(parents=True)
    (older / "state.json").write_text(json.dumps({"config_digest": "sha256:older", "step": 7}))
    attempt = Attempt(tmp_path, "j", 2)
    attempt.begin()
    attempt.take_over("inputs", Config())
    assert not checkpoints(attempt.folder.checkpoints)
    attempt.leave(finished=True)
    assert not list(tmp_path.iterdir())


def test_only_a_job_that_was_given_up_is_gone_on_from_by_another(tmp_path):
    mine = Attempt(tmp_path, "mine", 1)
    mine.begin()
    mine.take_over("inputs", Config())
    checkpointed(mine, 5)

    def taken(fence, inputs):
        other = Attempt(tmp_path, f"other-{fence}", fence)
        other.begin()
        other.take_over(inputs, Config())
        return bool(checkpoints(other.folder.checkpoints))

    assert not taken(2, "inputs")  # it may be at work
    mine.give_up()
    assert not taken(3, "other inputs")
    assert taken(4, "inputs")
    assert not mine.folder.path.exists()


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=64", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let this user mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_job_is_given_up_on_a_full_disk(small_disk):
    """Nobody may have what it left then; that its end is told comes first."""
    attempt = Attempt(small_disk / "jobs", "j", 1)
    attempt.begin()
    with pytest.raises(OSError, match="No space"):
        for number in range(100_000):
            (small_disk / f"{number}").touch()
    attempt.give_up()
    assert [path.name for path in attempt.folder.path.iterdir()] == []


def test_a_full_disk_is_told_of_even_there(small_disk):
    """Not one more file fits, and still the run's end says why."""
    from plinth.trainer.loop.job_folder import JobProgress

    job = JobFolder(small_disk)
    job.write_progress(JobProgress(1, 2, note="x" * 100))
    with pytest.raises(OSError, match="No space"), (small_disk / "rest").open("wb") as rest:
        while True:
            rest.write(b"0" * 512)
            rest.flush()
    with pytest.raises(ResourceExhausted, match="disk is full") as caught:
        job.write_progress(JobProgress(2, 2, note="x" * 100))
    job.end("failed", error=caught.value)
    assert job.error().reason == "DISK_FULL"
    with pytest.raises(FailedPrecondition, match="finite"):
        job.end("succeeded", loss=float("inf"))
