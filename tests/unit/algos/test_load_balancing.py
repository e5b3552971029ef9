"""The load-balancing loss against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from plinth.algos.load_balancing import load_balancing_loss


@pytest.mark.parametrize("chosen", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient(chosen: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [
        (2 * torch.randn(12, 5, generator=generator)).requires_grad_() for _ in range(3)
    ]  # fmt: skip
    counted = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]) if masked else None
    truth = load_balancing_loss_func(tuple(layers), 5, chosen, counted)
    loss = load_balancing_loss(layers, chosen, None if counted is None else counted.flatten() > 0)
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)
    wanted = torch.autograd.grad(truth, layers)
    for ours, theirs in zip(torch.autograd.grad(loss, layers), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_equal_loads_are_the_least() -> None:
    """c · Σ (j / c) (1 / c) = j."""
    logits = 20 * torch.eye(4).repeat(3, 1)
    assert float(load_balancing_loss([logits], 1)) == pytest.approx(1.0, abs=1e-6)
    alone = torch.tensor([[20.0, 0, 0, 0]]).expand(12, -1)
    assert float(load_balancing_loss([alone], 1)) == pytest.approx(4.0, abs=1e-5)


def test_half_precision_is_averaged_in_float32() -> None:
    loss = load_balancing_loss([torch.zeros(3000, 4, dtype=torch.bfloat16)], 2)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(2.0, abs=1e-5)


def test_no_row_counts() -> None:
    loss = load_balancing_loss([torch.randn(3, 4)], 2, torch.zeros(3, dtype=torch.bool))
    assert float(loss) == 0.0
