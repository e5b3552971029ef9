"""Mixtures of experts: the kernels and the torch version against the definition in double
precision, and the promise that rows stand alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtures import random_mixture
from plinth.kernels import experts
from plinth.kernels.calls import ACTIVATIONS
from plinth.kernels.dense import DenseOps
from plinth.kernels.fused import FusedOps
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.models.mixture import Mixture

# Width, experts, of them for each row, width of an expert.
SIZES = [(48, 5, 2, 40), (33, 7, 3, 31), (64, 1, 1, 32), (100, 130, 8, 77), (16, 4, 4, 5)]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _truth(x_nd: Tensor, logits_nc: Tensor, mixture: Mixture) -> Tensor:
    """Row by row, expert by expert."""
    out_nd = torch.zeros_like(x_nd, dtype=torch.float64)
    for row, (x, logits) in enumerate(zip(x_nd.double(), logits_nc.double(), strict=True)):
        weights, numbers = logits.softmax(-1).topk(mixture.chosen)
        if mixture.normalised:
            weights = weights / weights.sum()
        for weight, number in zip(weights, numbers.tolist(), strict=True):
            expert = mixture.experts[number]
            gate, up = (x @ one.weight.double().t() for one in (expert.gate, expert.up))
            wide = DenseOps().activate(mixture.activation, gate) * up
            out_nd[row] += weight * (wide @ expert.down.weight.double().t())
    return out_nd


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 13, 101])
def test_every_version_against_the_definition(
    sizes: tuple[int, int, int, int], rows: int, normalised: bool
) -> None:
    mixture = random_mixture(*sizes, normalised=normalised)
    x_nd = torch.randn(rows, sizes[0])
    logits_nc = 3 * F.linear(x_nd, mixture.router.weight)
    truth = _truth(x_nd, logits_nc, mixture)
    for backend in (NativeBackend(PackedWeights()), DenseOps(), FusedOps()):
        made = backend.mixture(x_nd, logits_nc, mixture)
        torch.testing.assert_close(made.double(), truth, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_experts(activation: str) -> None:
    mixture = random_mixture(20, 3, 2, 18, activation=activation)
    x_nd = torch.randn(7, 20)
    logits_nc = F.linear(x_nd, mixture.router.weight)
    made = NativeBackend(PackedWeights()).mixture(x_nd, logits_nc, mixture)
    torch.testing.assert_close(
        made.double(), _truth(x_nd, logits_nc, mixture), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_rows_bits_do_not_depend_on_its_company(sizes: tuple[int, int, int, int]) -> None:
    """Alone, in any part of a crowd, in another order, beside rows of the same experts, and on one
    thread or on three."""
    mixture = random_mixture(*sizes)
    backend = NativeBackend(PackedWeights())
    x_nd = torch.randn(101, sizes[0])
    logits_nc = F.linear(x_nd, mixture.router.weight)
    crowd = backend.mixture(x_nd, logits_nc, mixture)
    for first, last in ((0, 1), (3, 5), (7, 20), (40, 101)):
        part = slice(first, last)
        assert torch.equal(backend.mixture(x_nd[part], logits_nc[part], mixture), crowd[part])
    order = torch.randperm(101)
    assert torch.equal(backend.mixture(x_nd[order], logits_nc[order], mixture), crowd[order])
    together = backend.mixture(x_nd, logits_nc[:1].expand(101, -1).contiguous(), mixture)
    assert torch.equal(together[0], crowd[0])
    backend.threads = 3
    assert torch.equal(backend.mixture(x_nd, logits_nc, mixture), crowd)


def test_routes() -> None:
    """The likeliest first; of equal ones the lower number; weights of a softmax."""
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    chosen, weights = experts.route(logits, 3, normalised=False)
    assert chosen.tolist() == [[1, 2, 0], [0, 1, 2]]
    torch.testing.assert_close(weights, logits.softmax(-1).gather(1, chosen.long()))
    again, scaled = experts.route(logits, 3, normalised=True)
    assert torch.equal(again, chosen)
    torch.testing.assert_close(scaled, weights / weights.sum(1, keepdim=True))


def test_routes_of_far_logits() -> None:
    """Only one is likely, in fp32 the others are not at all; they are chosen in order still."""
    chosen, weights = experts.route(torch.tensor([[-1e4, 1e4, 0.0, -1e30]]), 3, normalised=True)
    assert chosen.tolist() == [[1, 2, 0]]
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_stays_in_its_row(bad: float) -> None:
    mixture = random_mixture(24, 6, 2, 20)
    backend = NativeBackend(PackedWeights())
    x_nd = torch.randn(5, 24)
    logits_nc = F.linear(x_nd, mixture.router.weight)
    clean = backend.mixture(x_nd, logits_nc, mixture)
    logits_nc[1, 4], logits_nc[3] = bad, bad
    made = backend.mixture(x_nd, logits_nc, mixture)
    assert made[[1, 3]].isnan().all()
    assert torch.equal(made[[0, 2, 4]], clean[[0, 2, 4]])


def test_new_values_are_packed_again() -> None:
    mixture = random_mixture(24, 4, 2, 20)
    weights = PackedWeights()
    backend, x_nd = NativeBackend(weights), torch.randn(5, 24)
    logits_nc = F.linear(x_nd, mixture.router.weight)
    before = backend.mixture(x_nd, logits_nc, mixture)
    mixture.experts[1].down.weight.mul_(2)
    mixture.experts[2].up.weight.mul_(2)
    assert torch.equal(backend.mixture(x_nd, logits_nc, mixture), before)
    weights.renew()
    torch.testing.assert_close(
        backend.mixture(x_nd, logits_nc, mixture).double(),
        _truth(x_nd, logits_nc, mixture), atol=3e-6, rtol=1e-5,
    )  # fmt: skip


def test_every_expert_has_a_gradient() -> None:
    """One that no row goes to has zeros: workers sum the gradients of all parameters."""
    mixture = random_mixture(12, 6, 2, 10)
    x_nd = torch.randn(3, 12)
    logits_nc = torch.tensor([[5.0, 4.0, 0, 0, 0, 0]]).expand(3, -1)
    with torch.enable_grad():
        FusedOps().mixture(x_nd, logits_nc, mixture).sum().backward()
    for number, expert in enumerate(mixture.experts):
        for one in (expert.gate, expert.up, expert.down):
            assert one.weight.grad is not None
            assert bool(one.weight.grad.any()) == (number < 2)
