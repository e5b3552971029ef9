"""Advantages, KL terms and clipped losses against plain statements of their papers in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.algos import policy

LENGTHS = (5, 1, 7, 3)
B, T = len(LENGTHS), 7
VALID = np.arange(T)[None, :] < np.array(LENGTHS)[:, None]


def made(seed, *, poison=True):
    """An array whose invalid places are NaN: nothing may depend on them."""
    array = np.random.default_rng(seed).normal(size=(B, T))
    return np.where(VALID, array, np.nan if poison else 0.0)


def tensor(array, **kwargs):
    return torch.tensor(array, dtype=torch.float64, **kwargs)


def valid():
    return torch.tensor(VALID)


def close(found, truth):
    np.testing.assert_allclose(found.detach().numpy(), truth, atol=1e-6)


def test_kl_estimates():
    logp, ref = made(1, poison=False), made(2, poison=False)
    r = np.exp(ref - logp)
    for name, truth in (("k1", -np.log(r)), ("k2", np.log(r) ** 2 / 2), ("k3", r - 1 - np.log(r))):
        close(policy.kl_estimate(tensor(logp), tensor(ref), name), truth)
    with pytest.raises(ValueError, match="k4"):
        policy.kl_estimate(tensor(logp), tensor(ref), "k4")


def test_k1_and_k3_are_unbiased():
    """By enumeration: the expectation under the policy is the divergence."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    truth = float((p * np.log(p / q)).sum())
    for name in ("k1", "k3"):
        each = policy.kl_estimate(tensor(np.log(p)), tensor(np.log(q)), name).numpy()
        assert float((p * each).sum()) == pytest.approx(truth)


def test_rewards_carry_kl_at_each_token_and_the_score_at_the_last():
    kl, scores = made(3), np.array([1.0, -2.0, 0.5, 3.0])
    truth = np.where(VALID, -0.1 * kl, 0.0)
    for row, length in enumerate(LENGTHS):
        truth[row, length - 1] += scores[row]
    close(policy.token_rewards(tensor(scores), tensor(kl), valid(), 0.1), truth)


@pytest.mark.parametrize("bootstrap", [None, np.array([0.3, -1.0, 2.0, 0.7])])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_discounted_sum_of_temporal_differences(gamma, lam, bootstrap):
    """The definition, as a sum over the future, not the recursion."""
    rewards, values = made(4), made(5)
    advantages = np.zeros((B, T))
    for row, n in enumerate(LENGTHS):
        beyond = 0.0 if bootstrap is None else bootstrap[row]
        after = [*values[row, 1:n], beyond]
        delta = [rewards[row, i] + gamma * after[i] - values[row, i] for i in range(n)]
        for i in range(n):
            advantages[row, i] = sum((gamma * lam) ** (k - i) * delta[k] for k in range(i, n))
    given_b = None if bootstrap is None else tensor(bootstrap)
    found, returns = policy.gae(
        tensor(rewards), tensor(values), valid(), gamma=gamma, lam=lam, bootstrap_b=given_b
    )
    close(found, advantages)
    close(returns, advantages + np.where(VALID, values, 0.0))


def test_whitening_is_over_valid_tokens_of_the_whole_batch():
    x = made(6)
    seen = x[VALID]
    close(
        policy.whiten(tensor(x), valid()),
        np.where(VALID, (x - seen.mean()) / np.sqrt(seen.var(ddof=1) + 1e-8), 0.0),
    )
    shifted = policy.whiten(tensor(x), valid(), shift_mean=False).numpy()[VALID]
    assert shifted.mean() == pytest.approx(seen.mean())
    assert shifted.std(ddof=1) == pytest.approx(1.0)


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8))
@settings(max_examples=50)
def test_group_advantages(scores):
    array = np.array(scores).reshape(2, 4)
    centred = array - array.mean(1, keepdims=True)
    plain = policy.group_advantages(tensor(scores), 4, by_std=False)
    close(plain, centred.reshape(-1))
    std = array.std(1, ddof=1, keepdims=True)
    close(policy.group_advantages(tensor(scores), 4), (centred / (std + 1e-4)).reshape(-1))
    others = [(array[p].sum() - array[p, i]) / 3 for p in range(2) for i in range(4)]
    close(policy.leave_one_out_advantages(tensor(scores), 4), array.reshape(-1) - others)


def test_a_group_without_variance_teaches_nothing():
    found = policy.group_advantages(tensor([0.1] * 4 + [1.0, 0.0, 0.0, 0.0]), 4)
    assert found[:4].abs().max() < 1e-9
    assert found[4] > 0
    with pytest.raises(ValueError, match="two answers"):
        policy.leave_one_out_advantages(tensor([1.0]), 1)


@pytest.mark.parametrize("high", [None, 0.3])
def test_the_clipped_surrogate(high):
    old, advantages, weights = made(8), made(9), np.abs(made(10))
    new = old + 0.5 * made(11)
    ratio = np.exp(new - old)
    upper = 1 + (0.2 if high is None else high)
    inside = np.clip(ratio, 0.8, upper)
    surrogate = np.minimum(ratio * advantages, inside * advantages)
    found = policy.clipped_policy_loss(
        tensor(new), tensor(old), tensor(advantages), valid(), high=high, weights_bt=tensor(weights)
    )
    close(found.loss_bt, np.where(VALID, -surrogate * weights, 0.0))
    assert int(found.clipped) == int((VALID & (surrogate < ratio * advantages)).sum())
    assert float(found.kl_to_old) == pytest.approx(np.nansum(ratio - 1 - np.log(ratio)))


def test_the_clipped_value_loss():
    values, old, returns = made(12), made(13), made(14)
    held = old + np.clip(values - old, -0.2, 0.2)
    truth = 0.5 * np.maximum((values - returns) ** 2, (held - returns) ** 2)
    found = policy.clipped_value_loss(tensor(values), tensor(old), tensor(returns), valid())
    close(found, np.where(VALID, truth, 0.0))


def test_gradients_by_finite_differences_and_none_from_invalid_places():
    old, advantages, returns = made(15), made(16), made(17)

    def loss(new, values):
        terms = policy.clipped_policy_loss(new, tensor(old), tensor(advantages), valid())
        value = policy.clipped_value_loss(values, tensor(old), tensor(returns), valid())
        return terms.loss_bt.sum() + value.sum()

    start = [tensor(old + 0.05, requires_grad=True), tensor(made(18), requires_grad=True)]
    loss(*start).backward()
    for given_bt in start:
        assert torch.isfinite(given_bt.grad).all()
        assert (given_bt.grad[~valid()] == 0).all()
    clean = [tensor(np.nan_to_num(t.detach().numpy()), requires_grad=True) for t in start]
    assert torch.autograd.gradcheck(loss, clean)


def test_entropy_and_truncated_weights():
    logits = np.random.default_rng(19).normal(size=(3, 11))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    close(policy.entropy(tensor(logits)), -(p * np.log(p)).sum(1))
    weights = policy.truncated_weights(tensor([[0.0, 2.0, -1.0]]), tensor([[0.0, 0.0, 0.0]]), 2.0)
    close(weights, [[1.0, 2.0, np.exp(-1)]])


def test_the_adaptive_controller_moves_towards_its_target():
    controller = policy.AdaptiveKl(0.1, target=6.0, horizon=100)
    controller.update(60.0, 10)  # far above: the error is clipped at 0.2
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    before = controller.coefficient
    controller.update(5.7, 10)
    assert controller.coefficient == pytest.approx(before * (1 - 0.05 * 10 / 100))


def test_what_long_answers_weigh_is_a_choice():
    loss = np.where(VALID, np.abs(made(20)), 0.0)
    sizes = {"tokens": float(VALID.sum()), "answers": float(B), "longest": 9}
    truth = {
        "tokens": loss.sum() / VALID.sum(),
        "answers": np.mean([loss[i, :n].mean() for i, n in enumerate(LENGTHS)]),
        "constant": loss.sum() / (B * 9),
    }
    for how, value in truth.items():
        assert float(policy.normalised(tensor(loss), valid(), how, **sizes)) == pytest.approx(value)
    with pytest.raises(ValueError, match="words"):
        policy.normalised(tensor(loss), valid(), "words", **sizes)
