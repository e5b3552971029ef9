"""The C++ kernels against torch in double precision, and their promise: rows stand alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth.kernels.calls import ACTIVATIONS
from plinth.kernels.dense import DenseOps
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch, Table
from plinth.kernels.reference import ReferenceBackend
from plinth.kernels.specs import AttentionSpec, StateSpec


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Map(nn.Linear):
    """A map as the kernels see it, without an adapter (`test_lora` has those with one)."""

    adapter = None


class Norm:
    def __init__(self, width: int, bias: bool) -> None:
        self.gain, self.eps = torch.randn(width), 1e-5
        self.bias = torch.randn(width) if bias else None


@pytest.mark.parametrize("inputs", [1, 48, 576])
@pytest.mark.parametrize("outputs", [1, 31, 32, 100, 192])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 64])
def test_linear(inputs: int, outputs: int, rows: int) -> None:
    linear = Map(inputs, outputs)
    backend = NativeBackend(PackedWeights())
    x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
    (y,) = backend.linear(x, linear)
    truth = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    torch.testing.assert_close(y.double(), truth, atol=2e-5, rtol=1e-5)
    added = backend.linear_add(x, linear, residual)
    torch.testing.assert_close(added.double(), truth + residual.double(), atol=2e-5, rtol=1e-5)
    for row in range(rows):  # the bits of a row do not depend on its company
        assert torch.equal(backend.linear(x[row : row + 1], linear)[0][0], y[row])


def test_linears_that_share_an_input() -> None:
    maps = [Map(48, 40, bias=False), Map(48, 24), Map(48, 24, bias=False)]
    backend = NativeBackend(PackedWeights())
    x = torch.randn(9, 48)
    for y, one in zip(backend.linear(x, *maps), maps, strict=True):
        torch.testing.assert_close(y, one(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [5, 16, 50, 576])
@pytest.mark.parametrize("bias", [False, True])
def test_norm(width: int, bias: bool) -> None:
    backend, x = NativeBackend(PackedWeights()), torch.randn(7, width)
    norm = Norm(width, bias)
    y = backend.norm(x, norm)
    d = x.double()
    if bias:
        truth = F.layer_norm(d, (width,), norm.gain.double(), norm.bias.double(), norm.eps)
    else:
        truth = F.rms_norm(d, (width,), norm.gain.double(), norm.eps)
    torch.testing.assert_close(y.double(), truth, atol=1e-5, rtol=1e-5)
    assert torch.equal(backend.norm(x[3:4], norm)[0], y[3])


def test_activations() -> None:
    backend = NativeBackend(PackedWeights())
    x = torch.cat([torch.linspace(-90, 90, 3001), torch.tensor([-1e30, 1e30, 0.0])]).view(4, -1)
    up = torch.randn_like(x)
    torch.testing.assert_close(backend.gate("silu", x, up), F.silu(x) * up, atol=1e-5, rtol=1e-5)
    small = torch.linspace(-12, 12, 3003).view(3, -1)
    for kind in ACTIVATIONS:
        truth = DenseOps().activate(kind, small.double())
        torch.testing.assert_close(
            backend.activate(kind, small).double(), truth, atol=2e-6, rtol=1e-5
        )
        assert torch.equal(backend.gate(kind, small, small), backend.activate(kind, small) * small)
        assert backend.activate(kind, torch.full((1, 3), math.nan)).isnan().all()


def _attend(
    backend: type,
    spec: AttentionSpec,
    cache: KvCache,
    runs: list[tuple[int, int, list[Table]]],
    qkv: list[Tensor],
) -> Tensor:
    batch = PagedBatch.build(runs, cache.block_size)
    one = (
        backend(PackedWeights(), cache, batch)
        if backend is NativeBackend
        else backend(cache, batch)
    )
    return one.mix(spec, *(x.clone() for x in qkv))


@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 8), (4, 4, 20), (9, 3, 64)])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (0, 1.5), (1, 0.0), (9, 1.5), (64, 0.0)])
def test_attention(
    block_size: int, heads: int, kv_heads: int, width: int, window: int, cap: float
) -> None:
    """Prefill in chunks of several sizes, then decoding, over blocks that start as NaN, and are so
    again, and in the table no more, once no window holds a token of theirs."""
    spec = AttentionSpec(0, StateSpec(kv_heads, width, window), width**-0.4, cap)
    lengths = [1, 5, 37]
    tables, used = [], 0
    for length in lengths:
        count = -(-(length + 2) // block_size)
        tables.append(list(range(used, used + count))[::-1])
        used += count
    data = [
        (
            torch.randn(n + 2, heads, width),
            torch.randn(n + 2, kv_heads, width),
            torch.randn(n + 2, kv_heads, width),
        )
        for n in lengths
    ]
    outputs = []
    for backend, chunks in (
        (ReferenceBackend, [99]),
        (NativeBackend, [99]),
        (NativeBackend, [1, 4, 99]),
    ):
        cache = KvCache([spec.state], used, block_size)
        cache.poison(list(range(used)))
        made = [torch.empty(0, heads * width) for _ in lengths]
        done, gone = [0] * len(lengths), [0] * len(lengths)
        for chunk in [*chunks, 1, 1]:
            takes = [
                min(chunk, (n if len(made[i]) < n else n + 2) - d)
                for i, (n, d) in enumerate(zip(lengths, done, strict=True))
            ]
            active = [i for i, take in enumerate(takes) if take > 0]
            runs = [(done[i], takes[i], [(gone[i], tables[i][gone[i] :])]) for i in active]
            parts = [
                torch.cat([data[i][j][done[i] : done[i] + takes[i]] for i in active])
                for j in range(3)
            ]
            out = _attend(backend, spec, cache, runs, parts)
            for i, part in zip(active, out.split([takes[i] for i in active]), strict=True):
                made[i] = torch.cat([made[i], part])
                done[i] += takes[i]
                if window:
                    gone[i] = max(0, done[i] + 1 - window) // block_size
                    cache.poison(tables[i][: gone[i]])
        assert done == [n + 2 for n in lengths]
        outputs.append(torch.cat(made))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs[1], outputs[2])
