"""What an objective does not take is refused, and the refusal says what would be right; in a
pipeline's step as in a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from pydantic import ValidationError

from job_specs import pair_spec, policy_spec, prepare_spec, train_spec
from plinth.coordinator.steps.data import DataSpec
from plinth.coordinator.steps.sample import SampleSpec
from plinth.coordinator.steps.train import TrainSpec
from plinth.shared.errors import InvalidArgument
from plinth.shared.objectives import OBJECTIVES
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb

SHAPE = {"layers": 1, "hidden": 8, "heads": 1, "context": 8}
POLICIES = [name for name, its in OBJECTIVES.items() if "policy" in its.takes]
# Of each setting a value that is no default, and what else it then needs.
VALUES: dict[str, Any] = {
    "learning_rate": 0.5,
    "max_seconds": 60.0,
    "sequence_length": 8,
    "schedule": "wsd",
    "precision": "fp32",
    "eval_every": 3,
    "checkpoint_every": 3,
    "warmup_fraction": 0.5,
    "decay_fraction": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "seed": 3,
    "policy.kl_in": "reward",
    "policy.kl_estimator": "k1",
    "policy.normalise": "answers",
    "policy.rollouts": "local",
    "policy.samples": 4,
    "policy.max_new_tokens": 3,
    "policy.epochs": 2,
    "policy.minibatches": 2,
    "policy.lam": 0.5,
    "policy.gamma": 0.5,
    "policy.clip_low": 0.3,
    "policy.by_std": False,
    "policy.whiten_advantages": False,
    "policy.whiten_rewards": False,
    "policy.bootstrap": False,
    "policy.importance_cap": 2.0,
    "pairs.beta": 0.3,
    "pairs.loss": "ipo",
    "pairs.label_smoothing": 0.1,
}
BESIDE: dict[str, dict[str, Any]] = {
    "max_seconds": {"steps": 0},
    "policy.clip_low": {"policy.epochs": 2},
    "policy.clip_high": {"policy.epochs": 2},
    "policy.stop_kl": {"policy.epochs": 2},
    "policy.ahead": {"policy.rollouts": "shards"},
    "policy.importance_cap": {"policy.rollouts": "shards", "policy.ahead": 1},
}


def settings() -> list[str]:
    """All that a training job can be told beside what it starts from, from the protocol itself."""
    names = []
    for field in pb.TrainSpec.DESCRIPTOR.fields:
        if field.name == "max_duration":
            names.append("max_seconds")
        elif field.name in ("pairs", "policy"):
            names += [f"{field.name}.{inner.name}" for inner in field.message_type.fields]
        elif field.type != FieldDescriptor.TYPE_MESSAGE:
            names.append(field.name)
    apart = {"objective", "dataset", "init_from", "steps", "batch_size", "reward", "workers"}
    return sorted(set(names) - apart - {"micro_batch_size"})


def told(objective: str, name: str) -> dict[str, Any]:
    """A whole specification with that one setting, flat."""
    policy = objective in POLICIES
    base = {"batch_size": 16, "steps": 4, "init_from": "m@1"}
    length = {} if policy else {"sequence_length": 8}
    judge = {"reward": "r@1"} if policy else {}
    value = VALUES.get(name, 1 if name == "policy.ahead" else 0.5)
    beside = BESIDE.get(name, {}) if name in OBJECTIVES[objective].takes else {}
    return {**base, **length, **judge, **beside, name: value}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, one in flat.items():
        section, dot, inner = name.partition(".")
        if dot:
            value.setdefault(section, {})[inner] = one
        else:
            value[name] = one
    return value


def job(objective: str, flat: dict[str, Any]) -> pb.JobSpec:
    value = nested(flat)
    for section, kind in (("pairs", pair_spec), ("policy", policy_spec)):
        if section in value:
            value[section] = kind(**value[section])
    train = train_spec(objective=objective, dataset="d@1", **value)
    return pb.JobSpec(output_name="x", train=train)


def in_proto(name: str) -> str:
    return "max_duration" if name == "max_seconds" else name


def step(objective: str, flat: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "train", "objective": objective, "dataset": "$d", **nested(flat)}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", settings())
def test_a_setting_is_used_or_refused(objective, name) -> None:
    """Whatever the protocol can say: nothing is taken and ignored."""
    flat = told(objective, name)
    if name in OBJECTIVES[objective].takes:
        check_spec(job(objective, flat))
        TrainSpec(**step(objective, flat))
        return
    says = f"{name.partition('.')[0]}.*can't use it|is for"
    with pytest.raises(InvalidArgument, match=says) as caught:
        check_spec(job(objective, flat))
    assert caught.value.field.startswith(f"spec.train.{in_proto(name.partition('.')[0])}")
    with pytest.raises(ValidationError, match=says):
        TrainSpec(**step(objective, flat))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_a_refusal_names_is_taken(objective) -> None:
    """The advice: each setting that is said to be usable is."""
    name = "eval_every" if objective in POLICIES else "policy.lam"
    with pytest.raises(InvalidArgument) as caught:
        check_spec(job(objective, told(objective, name)))
    if objective in POLICIES:
        usable = caught.value.message.rpartition(" uses ")[2].split(", ")
        assert {"learning_rate", "clip_norm", "steps", "policy"} <= set(usable)
        for other in (n for n in usable if n in VALUES):
            check_spec(job(objective, told(objective, other)))


@pytest.mark.parametrize(
    ("objective", "flat", "field", "says"),
    [
        ("sft", {"max_seconds": 9.0}, "max_seconds", "give one of the two"),
        ("clm", {"max_seconds": 9.0}, "max_seconds", "give one of the two"),
        ("clm", {"schedule": "cosine", "decay_fraction": 0.2}, "decay_fraction", "schedule 'wsd'"),
        (
            "grpo",
            {"policy.kl_in": "loss", "policy.kl_estimator": "k1"},
            "policy.kl_estimator",
            "gradient of zero",
        ),
        ("ppo", {"policy.kl_estimator": "k3"}, "policy.kl_estimator", "use k1"),
        ("ppo", {"policy.clip_low": 0.1}, "policy.clip_low", "more epochs or minibatches"),
        ("grpo", {"policy.stop_kl": 0.1}, "policy.stop_kl", "more epochs or minibatches"),
        ("grpo", {"policy.importance_cap": 3.0}, "policy.importance_cap", "for ahead 1"),
        (
            "ppo",
            {"policy.kl_coefficient": 0.0, "policy.kl_target": 3.0},
            "policy.kl_target",
            "is 0",
        ),
        (
            "rloo",
            {"policy.kl_coefficient": 0.0, "policy.kl_explosion": 3.0},
            "policy.kl_explosion",
            "is 0",
        ),
    ],
)
def test_what_has_no_effect_beside_the_rest_is_refused(objective, flat, field, says) -> None:
    flat = told(objective, "learning_rate") | flat
    with pytest.raises(InvalidArgument, match=says) as caught:
        check_spec(job(objective, flat))
    assert caught.value.field == f"spec.train.{in_proto(field)}"
    with pytest.raises(ValidationError, match=f"{field}.*{says}"):
        TrainSpec(**step(objective, flat))


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (
            DataSpec,
            {"kind": "data", "corpus": "$c", "tokenizer": "$t", "max_bytes": 9},
            "max_bytes",
        ),
        (
            DataSpec,
            {"kind": "data", "corpus": "$c", "tokenizer": "$t", "validation_fraction": 0.1},
            "validation_fraction has no effect on corpus",
        ),
        (
            DataSpec,
            {"kind": "data", "prompts": "$p", "tokenizer": "$t", "validation_fraction": 0.1},
            "validation_fraction has no effect on prompts",
        ),
        (
            SampleSpec,
            {"kind": "sample", "model": "m", "prompts": "$p", "reward_weight": 2.0},
            "give reward, or leave it out",
        ),
        (
            SampleSpec,
            {"kind": "sample", "model": "m", "prompts": "$p", "rewards": {}},
            "nothing would score",
        ),
    ],
)
def test_other_steps_refuse_what_they_would_not_use(kind, given, says) -> None:
    with pytest.raises(ValidationError, match=says):
        kind(**given)


@pytest.mark.parametrize("source", [{"corpus": "c@1"}, {"prompts": "p@1"}])
@pytest.mark.parametrize("extra", [{"validation_fraction": 0.1}, {"max_bytes": 9}])
def test_jobs_of_data_refuse_it_too(source, extra) -> None:
    prepare = prepare_spec(tokenizer="t@1", **source)
    check_spec(pb.JobSpec(output_name="x", prepare=prepare))
    prepare = prepare_spec(tokenizer="t@1", **source, **extra)
    with pytest.raises(InvalidArgument, match=r"no effect.*give it there"):
        check_spec(pb.JobSpec(output_name="x", prepare=prepare))


def test_rates_are_the_fields_own() -> None:
    """Nothing that goes on from a model starts at a rate for a new one; adapters bear ten times
    it."""
    rates = {name: its.default_rate(adapter=False) for name, its in OBJECTIVES.items()}
    assert rates["clm"] > 10 * max(rate for name, rate in rates.items() if name != "clm")
    for name in ("dpo", *POLICIES):
        assert 1e-7 <= rates[name] <= 1e-5
        assert OBJECTIVES[name].default_rate(adapter=True) == 10 * rates[name]


def test_the_page_of_objectives_has_the_same_numbers() -> None:
    page = (Path(__file__).parents[3] / "docs/objectives.md").read_text(encoding="utf-8")
    for name, its in OBJECTIVES.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [float(cell) for cell in row.split("|")[2:5]]
        assert cells == [its.learning_rate, its.weight_decay, its.warmup_fraction]
    config = PolicyConfig()
    for said in (
        f"`policy.kl_coefficient` ({config.kl_coefficient:g})",
        f"`policy.max_update_kl` ({config.max_update_kl:g})",
        f"`policy.stop_kl` ({config.stop_kl:g})",
    ):
        assert said in page
    assert config.kl_explosion == 0
