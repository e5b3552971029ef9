"""The fused operations and their gradients against torch's autograd in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plinth.kernels.dense import DenseOps
from plinth.kernels.fused import FusedOps, takes
from plinth.kernels.specs import AttentionSpec, StateSpec
from plinth.kernels.training import SdpaBackend
from plinth.models.layers import Norm

Compute = Callable[[DenseOps, list[Tensor]], Tensor]


def _truths(compute: Compute, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the inputs' gradients: torch's own, in double precision."""
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    result = compute(DenseOps(), doubles)
    return [result.detach(), *torch.autograd.grad(result, doubles, grad.double())]


def _equal_to_torch(compute: Compute, inputs: list[Tensor]) -> None:
    inputs = [x.detach().requires_grad_() for x in inputs]
    result = compute(FusedOps(), inputs)
    grad = torch.randn_like(result)
    ours = [result.detach(), *torch.autograd.grad(result, inputs, grad)]
    for mine, truth in zip(ours, _truths(compute, inputs, grad), strict=True):
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(mine.double(), truth, atol=2e-6 * scale, rtol=1e-5)


class _Weighed:
    bias = None

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.gain, self.eps = weight, eps


@pytest.mark.parametrize("width", [1, 5, 16, 50, 320])
@pytest.mark.parametrize("rows", [1, 3, 301])
def test_norm(rows: int, width: int) -> None:
    torch.manual_seed(rows * width)
    # An eps of the size of the squares: a gradient that forgets it would be found.
    inputs = [torch.randn(rows, width), torch.randn(width)]
    _equal_to_torch(lambda ops, t: ops.norm(t[0], _Weighed(t[1], 0.5)), inputs)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 16), (129, 200)])
def test_swiglu(size: tuple[int, int]) -> None:
    torch.manual_seed(sum(size))
    inputs = [4 * torch.randn(size), torch.randn(size)]
    _equal_to_torch(lambda ops, t: ops.gate("silu", t[0], t[1]), inputs)


def test_swiglu_where_the_gate_is_far_out() -> None:
    gate = torch.tensor([[-1e4, -100.0, -80.0, 0.0, 80.0, 100.0, 1e4]])
    _equal_to_torch(lambda ops, t: ops.gate("silu", t[0], t[1]), [gate, torch.ones_like(gate)])


@pytest.mark.parametrize(("rows", "heads", "width"), [(1, 1, 2), (9, 3, 10), (300, 8, 40)])
def test_rope(rows: int, heads: int, width: int) -> None:
    torch.manual_seed(rows)
    angles = torch.randn(50, width // 2)
    positions = torch.randint(0, 50, (rows,))

    def compute(ops: DenseOps, tensors: list[Tensor]) -> Tensor:
        tables = (angles.cos().to(tensors[0].dtype), angles.sin().to(tensors[0].dtype))
        return torch.cat(ops.rope(tensors[0], tensors[1], positions, *tables), dim=1)

    _equal_to_torch(compute, [torch.randn(rows, heads, width), torch.randn(rows, 1, width)])


def test_inputs_and_gradients_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(6, 8).t(), torch.randn(6, 8).t()]
    _equal_to_torch(lambda ops, t: ops.gate("silu", t[0], t[1]).t(), inputs)
    heads = torch.randn(2, 5, 4).transpose(0, 1)
    tables = (torch.randn(9, 2), torch.randn(9, 2))
    at = torch.arange(5)
    _equal_to_torch(
        lambda ops, t: ops.rope(t[0], t[0], at, *(x.to(t[0].dtype) for x in tables))[0], [heads]
    )


def test_the_same_bits_again() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(500, 64, requires_grad=True), Norm(64, 1e-5, bias=False)
    grads = []
    for _ in range(3):
        norm.zero_grad()
        FusedOps().norm(x, norm).square().sum().backward()  # type: ignore[no-untyped-call]
        assert norm.weight.grad is not None
        grads.append(norm.weight.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_frozen_weights_get_no_gradient() -> None:
    norm = Norm(8, 1e-5, bias=False)
    norm.weight.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    FusedOps().norm(x, norm).sum().backward()  # type: ignore[no-untyped-call]
    assert norm.weight.grad is None
    assert x.grad is not None


def test_autocast_and_other_types_are_left_to_torch() -> None:
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    half = FusedOps().gate("silu", gate.bfloat16(), up.bfloat16())
    assert torch.equal(half, DenseOps().gate("silu", gate.bfloat16(), up.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        linear = nn.Linear(8, 8)
        made = FusedOps().gate("silu", linear(gate), linear(up))
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(1, 1, 1), (4, 2, 16), (6, 2, 40)])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 48), (2, 131)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (2, 0.0), (5, 1.5), (200, 0.0)])
def test_attention(
    *,
    heads: int,
    kv_heads: int,
    width: int,
    batch: int,
    length: int,
    packed: bool,
    window: int,
    cap: float,
) -> None:
    """Against torch's attention over a mask of who sees whom."""
    torch.manual_seed(length + width)
    n = batch * length
    spec = AttentionSpec(0, StateSpec(kv_heads, width, window), width**-0.4, cap)
    segments = torch.randint(0, 2, (batch, length)).cumsum(1) // 4 if packed else None

    def compute(ops: DenseOps, tensors: list[Tensor]) -> Tensor:
        backend = SdpaBackend(batch, length, segments)
        assert takes(*tensors) == (tensors[0].dtype == torch.float32)
        return backend.mix(spec, tensors[0], tensors[1], tensors[2])

    shapes = [(n, heads, width), (n, kv_heads, width), (n, kv_heads, width)]
    _equal_to_torch(compute, [torch.randn(shape) for shape in shapes])


def test_attention_with_scores_that_no_exponential_holds() -> None:
    torch.manual_seed(0)
    inputs = [100 * torch.randn(40, 2, 8), 100 * torch.randn(40, 2, 8), torch.randn(40, 2, 8)]
    spec = AttentionSpec(0, StateSpec(2, 8), 8**-0.5)
    mixed = SdpaBackend(1, 40).mix(spec, inputs[0], inputs[1], inputs[2])
    truth = SdpaBackend(1, 40).mix(spec, *(x.double() for x in inputs))
    torch.testing.assert_close(mixed.double(), truth, atol=1e-3, rtol=1e-3)
