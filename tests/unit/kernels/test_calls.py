"""What the kernels cannot compute from is refused, by name, and nothing crashes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from plinth.kernels.arguments import ArgumentError
from plinth.kernels.dense import DenseOps
from plinth.kernels.fused import FusedOps
from plinth.kernels.library import SIGNATURES
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.reference import ReferenceBackend
from plinth.kernels.specs import StateSpec

# Attention reads no positions: they are counted only, and may lie on another device.
UNREAD = {("write_kv", "positions_n"), ("attend", "positions_n")}
# A copy is made of logits whose rows are not side by side.
COPIED = {("race", "logits_mv"), ("normalisers", "logits_mv")}


def test_every_argument_of_every_kernel_changed_in_every_way() -> None:
    """A changed argument is refused with an error of its name, or gives the very bits that
    contiguous copies of the same values give. In a process of its own: a crash is a failure."""
    program = Path(__file__).with_name("mutated_calls.py")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_PERTURB_": "165"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr)
    outcomes = [line for line in lines if line[3]]
    assert 2 * len(outcomes) == len(lines) > 2000
    assert {kernel.split()[0] for kernel, *_ in outcomes} == SIGNATURES.keys()
    for kernel, argument, change, outcome in outcomes:
        allowed = {"refused"} if change.startswith("bad") else {"refused", "same"}
        if (kernel, argument) in UNREAD | COPIED and (
            "stride" in change or ((kernel, argument) in UNREAD and change == "bad device")
        ):
            allowed = {"same"}
        assert outcome in allowed, (kernel, argument, change)
    assert Counter(outcome for *_, outcome in outcomes)["same"] > 50


def test_an_error_survives_its_way_to_another_process() -> None:
    error = ArgumentError("rope", "positions", "must be within 0 … 7; it is 0 … 8")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kernel, again.argument) == (str(error), "rope", "positions")
    assert isinstance(again, ValueError)


@pytest.mark.parametrize("position", [-1, 8, 2**40, -(2**62)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_outside_of_the_table(position: int, dtype: torch.dtype) -> None:
    """A draft whose context is shorter than its target's, and what torch would wrap around."""
    tables = (torch.ones(8, 2, dtype=dtype), torch.ones(8, 2, dtype=dtype))
    q = torch.randn(3, 2, 4, dtype=dtype)
    positions = torch.tensor([0, 7, position])
    cache = KvCache([StateSpec(2, 4)], 2, 4)
    batch = PagedBatch.build([(0, 3, [(0, [0])])], 4)
    backends: list[DenseOps | NativeBackend] = [
        DenseOps(), FusedOps(), ReferenceBackend(cache, batch)
    ]  # fmt: skip
    if dtype == torch.float32:
        backends.append(NativeBackend(PackedWeights(), cache, batch))
    for backend in backends:
        with pytest.raises((ArgumentError, IndexError, RuntimeError), match=r"range|0 … 7"):
            backend.rope(q.clone(), q.clone(), positions, *tables)


@pytest.mark.parametrize(
    ("run", "argument"),
    [
        ((0, 3, [2]), "table"),
        ((0, 3, [-1]), "table"),
        ((-2, 3, [0, 1]), "starts"),
        ((3, 1, [1, 9]), "table"),
    ],
)
def test_blocks_and_slots_outside_of_the_cache(
    run: tuple[int, int, list[int]], argument: str
) -> None:
    cache = KvCache([StateSpec(2, 4)], 2, 4)
    start, count, blocks = run
    batch = PagedBatch.build([(0, 1, [(0, [0])]), (start, count, [(0, blocks)])], 4)
    for backend in (
        lambda: ReferenceBackend(cache, batch),
        lambda: NativeBackend(PackedWeights(), cache, batch),
    ):
        with pytest.raises(ArgumentError) as refused:
            backend()
        assert refused.value.argument == argument


def test_weights_of_another_type_or_shape_are_refused_by_the_backend() -> None:
    class Norm:
        bias, eps = None, 1e-5
        gain = torch.ones(8, dtype=torch.bfloat16)

    backend = NativeBackend(PackedWeights())
    with pytest.raises(ArgumentError, match=r"kernel norm: weight must be torch.float32 \[8\]"):
        backend.norm(torch.randn(2, 8), Norm())
    linear = nn.Linear(8, 3)
    linear.adapter = None  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="kernel linear: x must be 8 wide"):
        backend.linear(torch.randn(2, 7), linear)  # type: ignore[arg-type]
