"""Step "train": one training job, from nothing (`model`) or from a model (`init_from`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from plinth.coordinator.rewards import WeightedRule, sources_of
from plinth.coordinator.scoring import context_length, read_config
from plinth.coordinator.steps.contract import (
    Input,
    Name,
    Progress,
    StepOutcome,
    StepSpec,
    Tools,
    Work,
)
from plinth.coordinator.steps.jobs import cancel_job, follow_job
from plinth.coordinator.steps.train_shapes import LoraShape, ModelShape, PairShape, PolicyShape
from plinth.models.adapters.linear_maps import check_targets
from plinth.shared.api.words import given
from plinth.shared.errors import InvalidArgument
from plinth.shared.objectives import OBJECTIVES, misfits
from plinth.shared.reward_plugins import plugins
from plinth.shared.rollout_results import check_fits
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import jobs_pb2 as pb

_PAIRS, _POLICY = ("dpo", "reward"), ("ppo", "grpo", "rloo")


class TrainSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "dataset": frozenset({"dataset"}),
        "init_from": frozenset({"model"}),
        "reward": frozenset({"reward"}),
    }

    kind: Literal["train"]
    objective: Literal["clm", "sft", "dpo", "reward", "ppo", "grpo", "rloo"]
    dataset: Input
    init_from: Input | None = None
    model: ModelShape | None = None
    sequence_length: int = Field(default=0, ge=0, le=1 << 20)  # 0: the model's context
    batch_size: int = Field(default=16, ge=1, le=1 << 16)
    micro_batch_size: int = Field(default=0, ge=0, le=1 << 16)
    steps: int = Field(default=0, ge=0)
    max_seconds: float = Field(default=0, ge=0)
    # Here and below, what is not given is the objective's own default: see `shared.objectives`.
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    schedule: Literal["wsd", "cosine"] | None = None
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    decay_fraction: float | None = Field(default=None, ge=0, le=1)
    weight_decay: float | None = Field(default=None, ge=0)
    clip_norm: float | None = Field(default=None, ge=0)
    precision: Literal["auto", "fp32", "bf16"] | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    workers: int = Field(default=1, ge=1, le=1024)
    checkpoint_every: int = Field(default=0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    pairs: PairShape | None = None  # for "dpo" and "reward"
    policy: PolicyShape | None = None  # for "ppo", "grpo" and "rloo": batch_size counts answers
    reward: Input | None = None  # for the same: the model that judges
    # For the same: rules that judge, at the reward stage; with a reward model as one more opinion.
    rewards: dict[Name, WeightedRule] | None = Field(default=None, min_length=1, max_length=15)
    reward_weight: float | None = Field(default=None, ge=-1e6, le=1e6)  # of it then; default 1
    lora: LoraShape | None = None  # train an adapter, not the model
    # The share of chats, pairs or prompts that may be left out as too long before the step fails.
    max_left_out: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> TrainSpec:
        if (self.init_from is None) == (self.model is None):
            raise ValueError("give one of init_from (a model to go on from) and model (its shape)")
        if not self.steps and not self.max_seconds:
            raise ValueError("give steps or max_seconds, or the training would have no end")
        if self.objective in (*_PAIRS, *_POLICY) and self.init_from is None:
            raise ValueError(f"{self.objective} starts from a model: give init_from")
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora adapts a model that there is: give init_from, not model")
        policy = self.objective in _POLICY
        if policy and self.reward is None and self.rewards is None:
            raise ValueError(f"{self.objective} needs a judge: give reward or rewards")
        if policy and not self.steps:
            raise ValueError(f"{self.objective} counts updates: give steps, not max_seconds")
        if self.reward_weight is not None and (self.reward is None or self.rewards is None):
            raise ValueError("reward_weight is of a reward model beside rules: reward and rewards")
        if self.policy is not None and self.policy.rollouts == "shards":
            try:
                check_fits(self.policy.samples or 1, self.policy.max_new_tokens)
            except InvalidArgument as wrong:
                raise ValueError(f"policy.{wrong.field}: {wrong.message}") from wrong
        for misfit in misfits(self.objective, self._given()):
            raise ValueError(f"{misfit.name}: {misfit.why}")
        return self

    def _given(self) -> dict[str, Any]:
        """What was said, by the names of `shared.objectives`."""
        said = {name: getattr(self, name) for name in (*_SAME, *_PARTS) if _told(self, name)}
        for section in _SECTIONS & said.keys():
            part = getattr(self, section)
            names = type(part).model_fields
            said |= {
                f"{section}.{name}": getattr(part, name) for name in names if _told(part, name)
            }
        return said

    def misfits(
        self, field: str, record: ArtifactRecord, store: ArtifactStore
    ) -> Iterator[tuple[str, str]]:
        if field != "init_from" or self.lora is None:
            return
        try:
            reward = self.objective == "reward"
            check_targets(store, record, self.lora.targets, reward=reward)
        except InvalidArgument as wrong:
            yield f"lora.{wrong.field}", wrong.message.removeprefix(f"{wrong.field}: ")

    def produces(self) -> str:
        return "reward" if self.objective == "reward" else "model"


# Settings that the job's message has too, by the same names (max_seconds is its max_duration).
_SAME = (
    "objective",
    "sequence_length",
    "batch_size",
    "micro_batch_size",
    "steps",
    "max_seconds",
    "learning_rate",
    "schedule",
    "warmup_fraction",
    "decay_fraction",
    "weight_decay",
    "clip_norm",
    "precision",
    "seed",
    "workers",
    "checkpoint_every",
    "eval_every",
    "max_left_out",
)
_SECTIONS = {"pairs", "policy", "lora"}
_PARTS = ("init_from", "model", "reward", "rewards", *_SECTIONS)


def _told(part: BaseModel, name: str) -> bool:
    """Whether a field was given a value of its own."""
    return bool(getattr(part, name) != type(part).model_fields[name].default)


class TrainStep:
    spec: type[StepSpec] = TrainSpec
    pure = True

    def surroundings(self, spec: TrainSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        # What is not said in the spec shapes the result too.
        defaults = OBJECTIVES[spec.objective]
        rate = defaults.default_rate(adapter=spec.lora is not None)
        said = {"defaults": f"{rate} {defaults.weight_decay} {defaults.warmup_fraction}"}
        return said | plugins() if spec.rewards else said

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, TrainSpec)
        said = {name: getattr(spec, name) for name in _SAME if name != "max_seconds"}
        train = given(
            pb.TrainSpec,
            {**said, "dataset": work.inputs["dataset"].ref, "max_duration": spec.max_seconds},
        )
        if spec.model is not None:
            train.model.CopyFrom(spec.model.message())
            context = spec.model.context
        else:
            start = work.inputs["init_from"]
            train.init_from = start.ref
            folder = await asyncio.to_thread(tools.store.fetch, start)
            context = context_length(await asyncio.to_thread(read_config, folder))
        if "sequence_length" in OBJECTIVES[spec.objective].takes:
            train.sequence_length = spec.sequence_length or context
        if spec.pairs is not None:
            train.pairs.CopyFrom(given(pb.PairSpec, spec.pairs.model_dump()))
        if spec.policy is not None:
            train.policy.CopyFrom(given(pb.PolicySpec, spec.policy.model_dump()))
        if spec.lora is not None:
            train.lora.CopyFrom(given(pb.LoraSpec, spec.lora.model_dump()))
        judge = work.inputs.get("reward")
        if spec.rewards is not None:
            weight = 1.0 if spec.reward_weight is None else spec.reward_weight
            train.rewards.extend(sources_of(spec.rewards, judge, weight))
        elif judge is not None:
            train.reward = judge.ref
        job = pb.JobSpec(output_name=work.output_name, train=train)
        async for event in follow_job(work, tools, job):
            yield event

    async def abandon(self, work: Work, tools: Tools) -> None:
        await cancel_job(work, tools)
