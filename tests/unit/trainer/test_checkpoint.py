import os
import subprocess
from pathlib import Path

import pytest
import torch

from plinth.shared.errors import DataLoss, FailedPrecondition, ResourceExhausted
from plinth.trainer import checkpoint as module
from plinth.trainer.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)


def model(seed=0, width=8):
    torch.manual_seed(seed)
    made = torch.nn.Linear(width, width)
    return made, torch.optim.AdamW(made.parameters(), lr=0.1, fused=True)


def step(made, optimizer):
    optimizer.zero_grad()
    made(torch.ones(2, made.in_features)).square().sum().backward()
    optimizer.step()


def state(number):
    return TrainState(config_digest="d", step=number, total=9, precision="fp32", threads=1)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    made, optimizer = model()
    step(made, optimizer)
    saved = save_checkpoint(tmp_path, made, optimizer, state(1))
    drawn = torch.rand(3)
    other, fresh = model(seed=5)
    load_checkpoint(saved, other, fresh)
    assert torch.equal(torch.rand(3), drawn)
    step(made, optimizer)
    step(other, fresh)
    assert torch.equal(made.weight, other.weight)
    assert read_state(saved, "d") == state(1)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path):
    made, optimizer = model()
    (tmp_path / ".writing-00000001").mkdir()
    for number in range(5):
        save_checkpoint(tmp_path, made, optimizer, state(number))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert len(list(tmp_path.iterdir())) == 2


def test_another_configuration_is_refused(tmp_path):
    saved = save_checkpoint(tmp_path, *model(), state(0))
    with pytest.raises(FailedPrecondition, match="another configuration"):
        read_state(saved, "other")


def test_damage_is_named(tmp_path):
    saved = save_checkpoint(tmp_path, *model(), state(0))
    with (saved / "model.safetensors").open("r+b") as file:
        file.truncate(50)
    with pytest.raises(DataLoss, match=r"step-00000000 is damaged"):
        load_checkpoint(saved, *model())
    (saved / "state.json").write_text("{")
    with pytest.raises(DataLoss, match="damaged"):
        read_state(saved, "d")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    made, optimizer = model()
    save_checkpoint(tmp_path, made, optimizer, state(1))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ResourceExhausted, match="disk is full") as caught:
        save_checkpoint(tmp_path, made, optimizer, state(2))
    assert caught.value.reason == "DISK_FULL"
    assert "goes on from its last checkpoint, step 1" in caught.value.message
    with pytest.raises(ResourceExhausted, match="begins at its first step"):
        save_checkpoint(tmp_path / "other", made, optimizer, state(2))
    (tmp_path / "other").rmdir()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(tmp_path / "step-00000001", *model())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        save_checkpoint(small, *model(), state(1))
        with pytest.raises(ResourceExhausted, match="disk is full"):
            save_checkpoint(small, *model(width=600), state(2))
        assert [p.name for p in Path(small).iterdir()] == ["step-00000001"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
