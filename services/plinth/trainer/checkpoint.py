"""Checkpoints of a training run: all or nothing, and no pickle.

    <folder>/step-00000120/model.safetensors       the parameters that are trained, by name
                           optimizer.safetensors   AdamW's moments and steps, random state
                           state.json              step, cursor, and what was decided at the start

A checkpoint is written beside its place, synced to the disk and then renamed, so that one with
its final name is complete. Saved by one worker: replicas are equal at the end of a step.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plinth.shared.errors import DataLoss, FailedPrecondition, PlinthError
from plinth.trainer.disk import disk_error
from plinth.trainer.finite import require_finite_tensors

FORMAT = 1
KEEP = 2
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_RANDOM = "random.cpu"


@dataclass
class TrainState:
    """Where a run stands. The data cursor is `step` itself: batches are a function of it."""

    config_digest: str
    step: int  # optimiser steps taken
    total: int  # steps to take, decided once
    precision: str  # "fp32" or "bf16", decided once
    threads: int  # per worker, decided once: it is part of the order of summation
    tokens: int = 0  # learnt so far
    loss: float = 0.0  # of the last step, nats per token
    seconds: float = 0.0  # spent on the steps, over all attempts
    controllers: dict[str, float] = field(default_factory=dict)  # what adapts as the run goes
    # Of a policy: rewards of the held-out prompts before its first update.
    held_out_before: list[float] | None = None
    format: int = FORMAT


def save_checkpoint(
    folder: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState
) -> Path:
    """Write the checkpoint of `state.step` and drop all but the newest KEEP.

    Raises ResourceExhausted when the disk is full, and FailedPrecondition where a number in it is
    not finite; earlier checkpoints are untouched then.
    """
    final = folder / f"step-{state.step:08d}"
    if final.is_dir():
        return final
    writing = folder / f".writing-{state.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".writing-*"):  # of a killed run
            shutil.rmtree(leftover)
        writing.mkdir()
        _write(writing, decoder, optimizer, state)
        writing.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError, PlinthError) as failed:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(failed, PlinthError):
            raise
        raise disk_error(failed, folder, "checkpoint") from failed
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def _write(
    folder: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState
) -> None:
    parameters = {name: p.detach() for name, p in trained(decoder)}
    tensors: dict[str, Tensor] = {_RANDOM: torch.get_rng_state()}
    for name, parameter in trained(decoder):
        for moment, value in optimizer.state[parameter].items() if step_taken(optimizer) else ():
            tensors[f"{moment}.{name}"] = value
    require_finite_tensors(parameters | tensors, f"the checkpoint of step {state.step}")
    save_file(parameters, folder / "model.safetensors")
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=1))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a run changes: of an adapted model, the frozen base is not among them."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def step_taken(optimizer: torch.optim.Optimizer) -> bool:
    """AdamW has no moments before its first step."""
    return bool(optimizer.state)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-????????"))


def read_state(checkpoint: Path, config_digest: str) -> TrainState:
    """The state of a checkpoint; FailedPrecondition when another configuration made it."""
    try:
        value: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        state = TrainState(**value)
    except (OSError, ValueError, TypeError) as damaged:
        raise _damaged(checkpoint, damaged) from damaged
    if state.format != FORMAT or state.config_digest != config_digest:
        raise FailedPrecondition(
            f"checkpoint {checkpoint} was made with another configuration or data; "
            "submit the job under a new id"
        )
    return state


def load_checkpoint(checkpoint: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into a decoder, its fresh optimiser, and the random state."""
    try:
        parameters = load_file(checkpoint / "model.safetensors")
        moments = load_file(checkpoint / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in trained(decoder):
                parameter.copy_(parameters[name])
                if f"step.{name}" in moments:
                    optimizer.state[parameter] = {
                        moment: moments[f"{moment}.{name}"].to(parameter.device)
                        for moment in _MOMENTS
                    }
        torch.set_rng_state(moments[_RANDOM])
    except (OSError, SafetensorError, KeyError, RuntimeError) as damaged:
        raise _damaged(checkpoint, damaged) from damaged


def _damaged(checkpoint: Path, why: Exception) -> DataLoss:
    return DataLoss(
        f"checkpoint {checkpoint} is damaged ({why}); delete that folder to go on from the one "
        "before it"
    )
