"""The same bits on every processor: what the README says, tried on the instruction sets that this
one has, with torch, numpy and the C library told to have no more either."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core._multiarray_umath as numpy_features
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import checkpoints
from mixtures import random_mixture
from plinth.kernels import calls, experts, gradients, race
from plinth.kernels.fused import FusedOps
from plinth.kernels.library import Kernels, instruction_set
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.specs import AttentionSpec, StateSpec
from plinth.kernels.training import SdpaBackend
from plinth.models.rotary import cosine_and_sine, powers, rotary_tables

SETS = ["base", "avx2", "avx512"]
HERE = SETS[: SETS.index(instruction_set()) + 1]
CAPABILITIES = {"base": "default", "avx2": "avx2", "avx512": "avx512"}
# What the vector mathematics of MKL may use, which torch calls.
MKL = {"base": "SSE4_2", "avx2": "AVX2", "avx512": "AVX512"}
# What the C library may use, by GLIBC_TUNABLES; what numpy may, beyond its baseline.
C_LIBRARY = {
    "base": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
    "avx2": "glibc.cpu.hwcaps=-AVX512F",
    "avx512": "",
}
NUMPY = {"base": ("X86_V3", "X86_V4", "AVX512"), "avx2": ("X86_V4", "AVX512"), "avx512": ()}


@pytest.fixture(params=HERE)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels of one instruction set."""
    made = Kernels(request.param)
    for door in (calls, experts, gradients, race):
        monkeypatch.setattr(door, "kernels", lambda: made)
    yield request.param


def _nearest(exact: Fraction) -> float:
    """The fp32 nearest to it, ties to even, by comparing neighbours."""
    guess = np.float32(float(exact))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    finite = [x for x in near if np.isfinite(x)]
    even = {x: int(x.view(np.uint32)) & 1 for x in finite}
    return float(min(finite, key=lambda x: (abs(Fraction(float(x)) - exact), even[x])))


FLOATS = st.one_of(
    st.floats(-(2.0**60), 2.0**60, width=32),
    st.floats(-4, 4, width=32),
    st.integers(-(2**13), 2**13).map(float),
    st.floats(-(2.0**-63), 2.0**-63, width=32),
    st.sampled_from([1 + 2**-12, 1 - 2**-12, 2.0**24, 2.0**-24, 1.0, 1 + 2**-23, 2.0**-75]),
)


@pytest.mark.parametrize("instructions", HERE)
@settings(max_examples=300)
@given(a=FLOATS, b=FLOATS, c=FLOATS)
def test_a_multiply_add_is_rounded_once(instructions: str, a: float, b: float, c: float) -> None:
    """c + a · b, subnormal and halfway results too."""
    a, b, c = (float(np.float32(x)) for x in (a, b, c))
    made = Kernels(instructions)
    x, out = torch.tensor([[1.0, a]]), torch.empty(1, 32)
    panel = torch.empty(2, 32)
    panel[0], panel[1] = c, b
    made.linear(
        *(x.data_ptr(), 2, 1, 2, panel.data_ptr(), None, None, 0, out.data_ptr(), 32, 32, 1)
    )
    exact = _nearest(Fraction(a) * Fraction(b) + Fraction(c))
    assert set(out[0].tolist()) == {exact}


@pytest.mark.parametrize("instructions", HERE[:-1])
def test_every_kernel_gives_the_same_bits(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in (instructions, HERE[-1]):
        made = Kernels(name)
        for door in (calls, experts, gradients, race):
            monkeypatch.setattr(door, "kernels", lambda made=made: made)
        results.append(_everything())
    for (what, ours), (also, theirs) in zip(*results, strict=True):
        assert what == also
        assert torch.equal(ours, theirs), what


def _everything() -> list[tuple[str, Tensor]]:
    """All kernels on the same random arguments, odd sizes."""
    torch.manual_seed(0)
    made: list[tuple[str, Tensor]] = []
    for rows in (1, 2, 3, 13):
        packed = calls.Packed(100, 77)
        packed.write(torch.randn(100, 77), 0)
        made.append((f"linear {rows}", calls.linear(torch.randn(rows, 77), packed, None, 1)))
    x, gate = 3 * torch.randn(9, 57), 9 * torch.randn(9, 57)
    made.append(("rms norm", calls.norm(x, torch.randn(57), None, 1e-5, 1)))
    made.append(("layer norm", calls.norm(x, torch.randn(57), torch.randn(57), 1e-5, 1)))
    made += [(kind, calls.activate(kind, gate, 1)) for kind in calls.ACTIVATIONS]
    made.append(("gated", calls.gate("silu", gate, x, 1)))
    mixture = random_mixture(57, 5, 2, 41)
    chosen, weights = experts.route(gate[:, :5], 2, normalised=True)
    made += [("route", chosen), ("route's weights", weights)]
    packed = experts.PackedExperts(mixture)
    made.append(("experts", experts.mixture(x, chosen, weights, packed, "silu", 1)))
    for size in (1, 3, 4, 16, 40):
        cache = KvCache(1, -(-90 // size), 2, 20, size)
        batch = PagedBatch.build([(0, 83, list(range(cache.blocks)))], size)
        tiles = calls.Tiles(batch, cache)
        tiles.write(0, torch.randn(83, 2, 20), torch.randn(83, 2, 20))
        spec = AttentionSpec(0, StateSpec(2, 20, 30), 0.3, 2.0)
        made.append((f"attend {size}", tiles.attend(spec, torch.randn(83, 4, 20), 1)))
    numbers = np.arange(3, dtype=np.uint64)
    drawn = race.race(4 * torch.randn(3, 999), np.array([0.3, 1, 2]), numbers, numbers, numbers, 1)
    made += [("race", torch.tensor(part, dtype=torch.float64)) for part in drawn]
    made.append(("normalisers", race.normalisers(5 * torch.randn(3, 999))))
    inputs = [torch.randn(60, h, 20, requires_grad=True) for h in (4, 2, 2)]
    gate, up = torch.randn(9, 57, requires_grad=True), torch.randn(9, 57, requires_grad=True)
    spec = AttentionSpec(0, StateSpec(2, 20, 30), 0.3, 2.0)
    mixed, activated = SdpaBackend(1, 60).mix(spec, *inputs), FusedOps().gate("silu", gate, up)
    loss = mixed.square().sum() + activated.square().sum()
    made += [("attend_whole", mixed.detach()), ("swiglu", activated.detach())]
    made += [("gradient", grad) for grad in torch.autograd.grad(loss, [*inputs, gate, up])]
    weight = torch.randn(57)
    made += [("norm_back", part) for part in gradients.norm_back(x, x + 1, weight, 1e-5, 1)]
    return made


def test_exponentials_logarithms_and_normalisers(chosen: str) -> None:
    dice = np.random.default_rng(0)
    x = np.concatenate([-dice.exponential(60, 20_000), dice.uniform(-1, 1, 20_000)])
    x = x[x > -700]
    truth = np.exp(x.astype(np.longdouble))
    assert float((np.abs(race.exponentials(x) - truth) / truth).max()) < 4e-16
    assert race.exponentials(np.array([0.0, -709.0, -np.inf, 710.0])).tolist() == [1, 0, 0, np.inf]
    x = np.concatenate([dice.uniform(0, 2, 40_000), 10.0 ** np.arange(-320, 300)])
    truth = np.log(x.astype(np.longdouble))
    error = np.abs(race.logarithms(x) - truth) / np.maximum(np.abs(truth), 1e-300)
    assert float(error[x != 1].max()) < 4e-16
    ends = race.logarithms(np.array([0.0, 1.0, np.inf, -1.0]))
    assert ends[:3].tolist() == [-np.inf, 0, np.inf]
    assert np.isnan(ends[3])
    logits = 20 * torch.randn(3, 1000)
    truth_m = logits.double().logsumexp(-1)
    torch.testing.assert_close(race.normalisers(logits), truth_m, atol=1e-6, rtol=1e-7)


def test_rotary_tables() -> None:
    x = np.random.default_rng(0).uniform(-(2**19), 2**19, 50_000)
    cosines, sines = cosine_and_sine(x)
    assert float(np.abs(cosines - np.cos(x.astype(np.longdouble))).max()) < 3e-16
    assert float(np.abs(sines - np.sin(x.astype(np.longdouble))).max()) < 3e-16
    frequencies = 1 / powers(5e5, torch.arange(0, 64, 2).float() / 64)
    angles = torch.outer(torch.arange(3000.0), frequencies).double()
    for table, truth in zip(
        rotary_tables(3000, frequencies), (angles.cos(), angles.sin()), strict=True
    ):
        assert torch.equal(table, truth.float())
    with pytest.raises(ValueError, match="positive and finite"):
        powers(0.0, torch.ones(1))
    with pytest.raises(ValueError, match="not finite"):
        rotary_tables(3, torch.tensor([float("inf")]))


GENERATION = """
import hashlib, json, sys, numpy, torch
from pathlib import Path
import engines
from plinth.engine.request import Sampling
from plinth.kernels.library import instruction_set
from plinth.models.weights import load_decoder
torch.set_num_threads(1)
said = {}
for folder in sys.argv[1:]:
    decoder = load_decoder(Path(folder))
    tables = [t.numpy().tobytes() for n, t in decoder.named_buffers()]
    said[folder] = [hashlib.sha256(b"".join(tables)).hexdigest()]
    for block_size in (4, 16):
        engine = engines.engine(decoder, blocks=256, block_size=block_size)
        dice = numpy.random.default_rng(0)
        prompts = [tuple(dice.integers(3, 320, n).tolist()) for n in (3, 40)]
        for number, sampling in enumerate((
            Sampling(temperature=0, max_tokens=12, top_logprobs=3),
            Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=5, max_tokens=12),
            Sampling(temperature=1.3, seed=6, max_tokens=12),
        )):
            for tokens in engines.complete(engine, prompts, sampling)[0]:
                said[folder].append([number, [
                    [t.id, t.logprob.hex(), t.raw_logprob.hex(),
                     [[i, p.hex()] for i, p in t.top]] for t in tokens
                ]])
said["instructions"] = instruction_set()
print(json.dumps(said))
"""


def _generate(instructions: str, folders: list[Path]) -> subprocess.Popen[str]:
    off = [
        name
        for name in numpy_features.__cpu_dispatch__
        if name.startswith(NUMPY[instructions]) and numpy_features.__cpu_features__.get(name)
    ]
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": CAPABILITIES[instructions],
        "MKL_ENABLE_INSTRUCTIONS": MKL[instructions],
        "GLIBC_TUNABLES": C_LIBRARY[instructions],
        "NPY_DISABLE_CPU_FEATURES": " ".join(off),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", GENERATION, *map(str, folders)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set here")
def test_answers_have_the_same_bits_on_every_processor(tmp_path: Path) -> None:
    """Greedy, filtered and free answers of three families, in blocks of 4 and 16."""
    missing = SETS[len(HERE) :]
    if len(HERE) == 1:
        pytest.skip(f"this processor has neither of {missing}: nothing to compare")
    folders = [
        checkpoints.random_llama(tmp_path / "llama"),
        checkpoints.random_gpt2(tmp_path / "gpt2"),
        checkpoints.random_qwen3_moe(tmp_path / "qwen3_moe"),
    ]
    running = {name: _generate(name, folders) for name in HERE}
    said: dict[str, Any] = {}
    for name, process in running.items():
        said[name] = json.loads(process.communicate()[0])
        assert process.returncode == 0
        assert said[name].pop("instructions") == name
    widest = said[HERE[-1]]
    for name in HERE:
        assert said[name] == widest, name
    for _, *answers in widest.values():
        assert len(answers) == 12
        assert answers[:6] == answers[6:], "blocks of 4 and 16"
        assert all(len(answer[1]) > 1 for answer in answers)
