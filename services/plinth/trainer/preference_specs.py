"""Specifications of what is learned from preferences: pairs, and a policy's own answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import MessageToDict

from plinth.shared.api.structs import mapping_of
from plinth.shared.api.words import in_words, said
from plinth.shared.errors import InvalidArgument
from plinth.shared.objectives import OBJECTIVES
from plinth.shared.rollout_results import check_fits
from plinth.trainer.loop.config import LEARNS_FROM, POLICY_OBJECTIVES
from plinth.trainer.objectives.pairs import PairOptions
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.refusals import in_range, objective_of, refuse
from plinth.v1 import jobs_pb2 as pb

MAX_SOURCES = 16  # of one reward
MODELS = (2, 8)  # that one comparison takes
_ALL = 1 << 31  # more prompts than any split has


def check_pairs(spec: pb.TrainSpec) -> None:
    objective = objective_of(spec)
    on_pairs = LEARNS_FROM[objective] == ("pairs",)
    if spec.HasField("pairs") and not on_pairs:
        refuse("pairs", f"is for 'dpo' and 'reward'; the objective is {objective!r}")
    if on_pairs and not spec.init_from:
        refuse("init_from", f"{objective!r} starts from a model; name it")
    if on_pairs:
        pairs = spec.pairs
        if pairs.HasField("beta"):
            in_range("pairs.beta", pairs.beta, 1e-4, 100.0)
        in_range("pairs.label_smoothing", pairs.label_smoothing, 0.0, 0.49)
        if pairs.loss == pb.PAIR_LOSS_IPO and pairs.label_smoothing:
            refuse("pairs.label_smoothing", "has no place in IPO, whose loss is a regression")
        for name in ("likelihood_weight", "centring", "margin", "max_chosen_drop"):
            in_range(f"pairs.{name}", getattr(pairs, name), 0.0, 100.0)


def pairs_of(spec: pb.TrainSpec) -> dict[str, Any] | None:
    if LEARNS_FROM[objective_of(spec)] != ("pairs",):
        return None
    given = spec.pairs
    optional = {n: getattr(given, n) for n in ("beta", "max_chosen_drop") if given.HasField(n)}
    options = PairOptions(
        loss=said(given, "loss") or "sigmoid",
        label_smoothing=given.label_smoothing,
        likelihood_weight=given.likelihood_weight,
        centring=given.centring,
        margin=given.margin,
        **optional,
    )
    return asdict(options)


def check_policy(spec: pb.TrainSpec) -> None:
    objective = objective_of(spec)
    if objective not in POLICY_OBJECTIVES:
        given = {
            "policy": spec.HasField("policy"),
            "reward": bool(spec.reward),
            "rewards": bool(spec.rewards),
        }
        for name in (name for name, there in given.items() if there):
            refuse(name, f"is for {', '.join(POLICY_OBJECTIVES)}, not for {objective!r}")
        return
    if not spec.init_from:
        refuse("init_from", f"{objective!r} starts from a model; name it")
    if bool(spec.reward) == bool(spec.rewards):
        refuse(
            "reward",
            f"{objective!r} needs either a reward model (reward), which its worker holds, or "
            "sources for the reward stage (rewards)",
        )
    if len(spec.rewards) > MAX_SOURCES:
        refuse("rewards", f"{len(spec.rewards)} sources; at most {MAX_SOURCES} are taken")
    if not spec.steps:
        refuse("steps", f"{objective!r} counts updates: give steps, not max_duration")
    for number, source in enumerate(spec.rewards):
        try:
            mapping_of(source.rule, f"rewards.{number}.rule")
        except InvalidArgument as wrong:
            refuse(wrong.field, wrong.message)
    if (spec.workers or 1) != 1:
        refuse("workers", f"{objective!r} runs on one worker")
    policy = policy_of(spec)
    if policy is not None and policy.rollouts == "shards":
        try:
            check_fits(policy.samples, policy.max_new_tokens)
        except InvalidArgument as wrong:
            refuse(f"policy.{wrong.field}", wrong.message)


def policy_of(spec: pb.TrainSpec) -> PolicyConfig | None:
    """The whole configuration of a policy objective; None for others."""
    if (objective := objective_of(spec)) not in POLICY_OBJECTIVES:
        return None
    samples = spec.policy.samples or (1 if objective == "ppo" else 4)
    if spec.batch_size % samples:
        refuse("batch_size", f"{spec.batch_size} answers are no multiple of {samples} per prompt")
    fields = {**in_words(spec.policy), "samples": samples}
    defaults = OBJECTIVES[objective]
    fields["weight_decay"] = defaults.weight_decay
    for name in ("clip_norm", "weight_decay"):
        if spec.HasField(name):
            fields[name] = getattr(spec, name)
    try:
        return PolicyConfig(
            algorithm=objective,
            updates=spec.steps,
            prompts=spec.batch_size // samples,
            learning_rate=rate_of(spec),
            micro_batch=spec.micro_batch_size or min(16, spec.batch_size),
            seed=spec.seed,
            **fields,
        )
    except InvalidArgument as wrong:
        raise InvalidArgument(
            f"policy.{wrong.message}", field=f"spec.train.policy.{wrong.field}"
        ) from wrong


def rate_of(spec: pb.TrainSpec) -> float:
    """The learning rate that was given, or the objective's own."""
    defaults = OBJECTIVES[objective_of(spec)]
    return spec.learning_rate or defaults.default_rate(adapter=spec.HasField("lora"))


def rewards_of(spec: pb.TrainSpec) -> tuple[dict[str, Any], ...]:
    """The reward stage's sources, JSON-ready."""
    return tuple(MessageToDict(one, preserving_proto_field_name=True) for one in spec.rewards)


def check_compare(spec: pb.CompareSpec) -> None:
    """Raise InvalidArgument for whatever can be told from the request alone."""
    for name in ("dataset", "reward"):
        if not getattr(spec, name):
            raise InvalidArgument(
                f"{name}: is empty; name an artifact", field=f"spec.compare.{name}"
            )
    if not MODELS[0] <= len(spec.models) <= MODELS[1]:
        raise InvalidArgument(
            f"models: {len(spec.models)} given, must be {MODELS[0]} to {MODELS[1]}; the first is "
            "the baseline",
            field="spec.compare.models",
        )
    if spec.prompts == 1:
        raise InvalidArgument(
            "prompts: is 1, must be 0 for all or at least 2", field="spec.compare.prompts"
        )
    compare_policy(spec)


def compare_policy(spec: pb.CompareSpec) -> PolicyConfig:
    """How the models are sampled. `prompts`: of the held-out ones at most, 0 for all."""
    given: dict[str, Any] = {"prompts": spec.prompts or _ALL}
    if spec.max_new_tokens:
        given["max_new_tokens"] = spec.max_new_tokens
    if spec.HasField("temperature"):
        given["temperature"] = spec.temperature
    return PolicyConfig(**given)
