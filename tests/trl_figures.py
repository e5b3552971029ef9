"""What TRL's own code made of some batches, kept with the batches: peers are not in every checkout.

`tests/unit/algos/test_against_trl.py` runs in TRL's environments and compares; with
`PLINTH_KEEP_FIGURES=1` it writes what it saw here. `test_trl_figures.py` compares with that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plinth.algos import policy as algo
from plinth.algos.preferences import (
    PairLogprobs,
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
)

FILE = Path(__file__).parent / "unit" / "algos" / "trl_figures.json"


def _pairs(policy: Tensor, reference: Tensor, beta: float, loss: str) -> Tensor:
    """Of sums of log-probabilities for DPO, of means for IPO: chosen ones, then rejected ones."""
    sides = [PairLogprobs(*side.chunk(2)) for side in (policy, reference)]
    return (ipo_loss if loss == "ipo" else dpo_loss)(*sides, beta).mean()


def _scores(scores: Tensor, margin: float | None, centring: float) -> Tensor:
    chosen_b, rejected_b = scores.chunk(2)
    margin_b = None if margin is None else torch.full_like(chosen_b, margin)
    return bradley_terry_loss(chosen_b, rejected_b, margin_b=margin_b, centring=centring).mean()


def _clipped(
    now: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, valid: Tensor, **how: Any
) -> Tensor:
    b, t = now.shape
    terms = algo.clipped_policy_loss(
        now, old, advantages[:, None].expand(b, t), valid, low=how["low"], high=how["high"]
    )
    assert 0 < int(terms.clipped) < int(valid.sum())

    def mean(x_bt: Tensor) -> Tensor:
        return algo.normalised(
            x_bt, valid, how["normalise"], tokens=float(valid.sum()), answers=b, longest=t
        )

    loss = mean(terms.loss_bt)
    if how["beta"]:
        kl_bt = algo.kl_estimate(now, reference, "k3")
        loss = loss + how["beta"] * mean(torch.where(valid, kl_bt, 0.0))
    return loss


def _ppo(
    now: Tensor, reference: Tensor, scores: Tensor, values: Tensor, estimator: str, **how: float
) -> Tensor:
    """(KL per answer, reward with its penalty, the critic's loss)"""
    valid_bt = torch.ones_like(now, dtype=torch.bool)
    kl_bt = algo.kl_estimate(now, reference, estimator)
    rewards_bt = algo.token_rewards(scores, kl_bt, valid_bt, how["coefficient"])
    _, returns_bt = algo.gae(rewards_bt, values, valid_bt, gamma=how["gamma"], lam=how["lam"])
    loss_bt = algo.clipped_value_loss(values, values, returns_bt, valid_bt, how["clip"])
    return torch.stack((kl_bt.sum(1).mean(), rewards_bt.sum(1).mean(), loss_bt.mean()))


def _whitened(x: Tensor, valid: Tensor, shift: bool) -> Tensor:
    return algo.whiten(x, valid, shift_mean=shift)[valid]


OURS: dict[str, Callable[..., Tensor]] = {
    "pairs": _pairs,
    "scores": _scores,
    "group": lambda scores, by_std: algo.group_advantages(scores, 4, by_std=by_std),
    "others": lambda scores: algo.leave_one_out_advantages(scores, 4),
    "clipped": _clipped,
    "whitened": _whitened,
    "ppo": _ppo,
}


def agree(kind: str, theirs: Tensor, rel: float = 1e-5, **given: Any) -> None:
    """Ours from `given` is theirs; with the variable above, both are kept."""
    ours = OURS[kind](**given)
    assert ours.detach().tolist() == pytest.approx(theirs.detach().tolist(), rel=rel, abs=1e-6)
    if os.environ.get("PLINTH_KEEP_FIGURES"):
        case = {
            "kind": kind,
            "given": {n: v.tolist() if isinstance(v, Tensor) else v for n, v in given.items()},
            "theirs": theirs.tolist(),
            "rel": rel,
        }
        name = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
        FILE.write_text(json.dumps(kept() | {name: case}, indent=1, sort_keys=True) + "\n")


def kept() -> dict[str, dict[str, Any]]:
    """Cases by the name of the test that saw them."""
    cases: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    return cases


def compare(case: dict[str, Any]) -> None:
    """With what was kept."""
    given = {n: torch.tensor(v) if isinstance(v, list) else v for n, v in case["given"].items()}
    ours = OURS[case["kind"]](**given).tolist()
    assert ours == pytest.approx(case["theirs"], rel=case["rel"], abs=1e-6)
