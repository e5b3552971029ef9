"""Pair losses against their papers in numpy, and their gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plinth.algos.preferences import PairLogprobs, bradley_terry_loss, dpo_loss, ipo_loss

CHANCE = np.random.default_rng(3)
PC, PR, RC, RR = (CHANCE.normal(-40, 5, 9) for _ in range(4))


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def pairs(*arrays):
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    return tensors, PairLogprobs(*tensors[:2]), PairLogprobs(*tensors[2:])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_dpo_and_its_conservative_kind(beta, epsilon):
    _, policy, reference = pairs(PC, PR, RC, RR)
    found = dpo_loss(policy, reference, beta, label_smoothing=epsilon)
    h = beta * ((PC - RC) - (PR - RR))
    truth = -(1 - epsilon) * log_sigmoid(h) - epsilon * log_sigmoid(-h)
    np.testing.assert_allclose(found.detach().numpy(), truth, atol=1e-6)


def test_ipo():
    _, policy, reference = pairs(PC / 40, PR / 40, RC / 40, RR / 40)
    h = ((PC - RC) - (PR - RR)) / 40
    truth = (h - 1 / (2 * 0.1)) ** 2
    np.testing.assert_allclose(ipo_loss(policy, reference, 0.1).detach().numpy(), truth, atol=1e-6)


def test_bradley_terry_with_margin_smoothing_and_centring():
    chosen, rejected, margin = CHANCE.normal(size=7), CHANCE.normal(size=7), CHANCE.uniform(size=7)
    found = bradley_terry_loss(
        torch.tensor(chosen),
        torch.tensor(rejected),
        margin_b=torch.tensor(margin),
        label_smoothing=0.2,
        centring=0.01,
    )
    lead = chosen - rejected - margin
    truth = -0.8 * log_sigmoid(lead) - 0.2 * log_sigmoid(-lead) + 0.01 * (chosen + rejected) ** 2
    np.testing.assert_allclose(found.numpy(), truth, atol=1e-6)
    plain = bradley_terry_loss(torch.tensor(chosen), torch.tensor(rejected)).numpy()
    np.testing.assert_allclose(plain, -log_sigmoid(chosen - rejected), atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, r: dpo_loss(p, r, 0.1, label_smoothing=0.1),
        lambda p, r: ipo_loss(p, r, 0.1),
        lambda p, r: bradley_terry_loss(
            p.chosen_b, p.rejected_b, label_smoothing=0.1, centring=0.1
        ),
    ],
)
def test_gradients_by_finite_differences(loss):
    tensors, _, _ = pairs(PC[:3], PR[:3], RC[:3], RR[:3])

    def of(*values):
        return loss(PairLogprobs(*values[:2]), PairLogprobs(*values[2:]))

    assert torch.autograd.gradcheck(of, tensors)


def test_far_apart_answers_stay_finite():
    _, policy, reference = pairs([-1e4], [-1.0], [-1.0], [-1e4])
    loss = dpo_loss(policy, reference, 1.0).detach()
    assert torch.isfinite(loss).all()
    assert float(loss) == pytest.approx(19998.0)
