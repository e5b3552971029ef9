"""What each training objective can be told, and what holds where nothing is said: written once.

A setting that an objective would not use is refused, in a pipeline's step as in a job. Settings are
named as in `TrainSpec` of jobs.proto, those of its sections with a dot ("policy.clip_low").
Defaults are the field's for models of billions of parameters; small ones bear, and need, more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

# By where a policy's KL enters; the first is the default.
KL_ESTIMATORS = {"reward": ("k1",), "loss": ("k2", "k3")}
ADAPTER_RATE = 10.0  # times a default learning rate (Schulman et al. 2025, "LoRA without regret")


@dataclass(frozen=True)
class Objective:
    """`takes`: all that it uses. The rest holds where nothing is said: the learning rate of all
    weights (of an adapter, `ADAPTER_RATE` times that), and what of it is warm-up."""

    takes: frozenset[str]
    learning_rate: float
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0

    def default_rate(self, *, adapter: bool) -> float:
        return self.learning_rate * (ADAPTER_RATE if adapter else 1.0)


def _names(section: str, names: str) -> frozenset[str]:
    return frozenset(f"{section}.{name}" if section else name for name in names.split())


_ALL = _names(
    "",
    "objective dataset init_from batch_size micro_batch_size steps learning_rate weight_decay "
    "clip_norm seed workers checkpoint_every lora lora.rank lora.alpha lora.targets lora.rslora",
)
# What walks over a dataset has its steps measured, its rate scheduled, its sequences cut.
_LOOP = _ALL | _names(
    "",
    "sequence_length max_seconds schedule warmup_fraction decay_fraction precision eval_every "
    "lora.dropout",
)
_PAIRS = _LOOP | _names("", "max_left_out pairs pairs.label_smoothing")
_POLICY = (
    _ALL
    | _names("", "max_left_out policy reward rewards")
    | _names(
        "policy",
        "samples max_new_tokens temperature epochs minibatches clip_low clip_high entropy_weight "
        "kl_coefficient kl_target kl_estimator kl_in normalise missing_eos_penalty stop_kl "
        "max_update_kl kl_explosion rollouts ahead importance_cap",
    )
)
_NOISE = {"precision", "lora.dropout"}
_CRITIC = _names("policy", "gamma lam whiten_advantages whiten_rewards bootstrap")

OBJECTIVES: Mapping[str, Objective] = {
    # Brown et al. 2020, table 2.1: GPT-3 small.
    "clm": Objective(_LOOP | {"model"}, 6e-4, weight_decay=0.1, warmup_fraction=0.02),
    # Touvron et al. 2023 (Llama 2), section 3.1; and 3.2.2, with TRL's absence of decay.
    "sft": Objective(
        _LOOP | _names("", "max_left_out model"), 2e-5, weight_decay=0.1, warmup_fraction=0.03
    ),
    "reward": Objective(_PAIRS | _names("pairs", "centring margin"), 1e-5, warmup_fraction=0.03),
    # Rafailov et al. 2023, appendix B.
    "dpo": Objective(
        _PAIRS | _names("pairs", "beta loss likelihood_weight max_chosen_drop"),
        1e-6,
        warmup_fraction=0.1,
    ),
    # Shao et al. 2024, section 4.2; Ahmadian et al. 2024; verl's and TRL's for PPO are as small.
    "ppo": Objective(_POLICY | _CRITIC, 1e-6),
    "grpo": Objective(_POLICY | {"policy.by_std"}, 1e-6),
    "rloo": Objective(_POLICY, 1e-6),
}


@dataclass(frozen=True)
class Misfit:
    """A setting that would have no effect: which one, and what would be right."""

    name: str
    why: str


def misfits(objective: str, given: Mapping[str, Any]) -> Iterator[Misfit]:
    """Of the settings that were `given` (not of those left to their defaults), which ones the
    objective can't use, or not beside the others."""
    takes = OBJECTIVES[objective].takes
    for name in given:
        if name not in takes:
            why = ", since trainer and sampler must compute the same" if name in _NOISE else ""
            yield Misfit(name, f"{objective!r} can't use it{why}; {_usable(objective, name)}")
    if given.get("steps") and given.get("max_seconds"):
        yield Misfit("max_seconds", "steps are given, which decide; give one of the two")
    if given.get("schedule") == "cosine" and "decay_fraction" in given:
        yield Misfit("decay_fraction", "'cosine' falls all the way; it is for schedule 'wsd'")
    if "policy" in takes:
        yield from _policy_misfits(given)


def _usable(objective: str, name: str) -> str:
    """What there is in that name's place, or who uses it."""
    section = name.partition(".")[0] if "." in name else ""
    takes = OBJECTIVES[objective].takes
    if section in takes:
        mine = sorted(n for n in takes if n.startswith(f"{section}."))
        return f"of {section} it uses {', '.join(n.partition('.')[2] for n in mine)}"
    whose = [other for other, its in OBJECTIVES.items() if (section or name) in its.takes]
    mine = sorted(n for n in takes if "." not in n)
    return f"it is for {', '.join(whose)}; {objective!r} uses {', '.join(mine)}"


def wrong_estimator(where: str, estimator: str) -> str | None:
    """What speaks against a KL estimator in the "reward" or in the "loss"; None: it holds a policy.

    Values of all three estimate the KL; for their gradients see `kl_estimate` of algos.policy."""
    if estimator in KL_ESTIMATORS[where]:
        return None
    if estimator not in chain(*KL_ESTIMATORS.values()):
        return f"{estimator!r} is unknown; use k1, k2 or k3"
    if where == "loss":
        return (
            f"{estimator!r} in the loss has an expected gradient of zero and holds nothing: use k2 "
            "(the gradient of KL(policy ‖ reference)) or k3 (of KL(reference ‖ policy)), or give "
            "kl_in 'reward'"
        )
    return (
        f"{estimator!r} in the reward also pushes down what is rarer than in the reference, and "
        "holds nothing: use k1, or give kl_in 'loss'"
    )


def _policy_misfits(given: Mapping[str, Any]) -> Iterator[Misfit]:
    """What of a policy's section has no effect beside the rest of it."""
    if given.get("policy.kl_coefficient") == 0:
        for name in ("kl_target", "kl_estimator", "kl_in", "kl_explosion"):
            if given.get(f"policy.{name}"):
                yield Misfit(f"policy.{name}", "kl_coefficient is 0, so there is no reference")
    steps = (given.get("policy.epochs") or 1) * (given.get("policy.minibatches") or 1)
    if steps == 1:
        for name in ("clip_low", "clip_high", "stop_kl"):
            if given.get(f"policy.{name}"):
                yield Misfit(
                    f"policy.{name}",
                    "an update is one optimiser step, whose policy is still the one that sampled; "
                    "give more epochs or minibatches",
                )
    where, estimator = given.get("policy.kl_in") or "reward", given.get("policy.kl_estimator")
    if estimator and (why := wrong_estimator(where, estimator)):
        yield Misfit("policy.kl_estimator", why)
    in_loss = given.get("policy.kl_in") == "loss" and steps > 1
    if "policy.importance_cap" in given and not given.get("policy.ahead") and not in_loss:
        yield Misfit(
            "policy.importance_cap",
            "no token is of older weights: it is for ahead 1, and for kl_in 'loss' with more "
            "epochs or minibatches",
        )
