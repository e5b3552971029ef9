"""The parts of a step "train": what its model, adapters, pairs and policy are told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from plinth.models.families import FAMILIES
from plinth.shared.api.enums import words
from plinth.shared.api.words import given
from plinth.v1 import jobs_pb2 as pb


class ExpertShape(BaseModel):
    """The mixture of experts of a new model; see `ExpertSpec` in jobs.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1, le=1024)
    per_token: int = Field(ge=1, le=1024)
    intermediate: int = Field(default=0, ge=0, le=1 << 20)  # 0: the model's
    balance: float | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="after")
    def _check_chosen(self) -> ExpertShape:
        if self.per_token > self.count:
            raise ValueError(f"per_token is {self.per_token}, at most the {self.count} of count")
        return self


class ModelShape(BaseModel):
    """Shape of a new model; see `ModelSpec` in jobs.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = "llama"  # a word of ModelFamily
    layers: int = Field(ge=1, le=256)
    hidden: int = Field(ge=1, le=65536)
    heads: int = Field(ge=1, le=1024)
    kv_heads: int = Field(default=0, ge=0, le=1024)  # 0: as heads
    intermediate: int = Field(default=0, ge=0, le=1 << 20)  # 0: the family's usual ratio
    context: int = Field(ge=2, le=1 << 20)
    tie_embeddings: bool = True
    experts: ExpertShape | None = None

    @field_validator("family")
    @classmethod
    def _check_family(cls, word: str) -> str:
        if word not in (known := words(pb.ModelFamily)):
            raise ValueError(f"{word[:40]!r} is no family to begin with; use {' or '.join(known)}")
        return word

    @model_validator(mode="after")
    def _check_experts(self) -> ModelShape:
        """Before anything runs, rather than when the step's turn comes."""
        sparse = [name for name, family in FAMILIES.items() if "router" in family.names.parts]
        if self.experts is not None and self.family not in sparse:
            raise ValueError(
                f"experts are given for {self.family!r}, whose layers have none; "
                f"{' or '.join(map(repr, sparse))} has"
            )
        return self

    def message(self) -> pb.ModelSpec:
        """As a job's specification says it."""
        model = given(pb.ModelSpec, self.model_dump(exclude={"experts"}))
        if self.experts is not None:
            model.experts.CopyFrom(given(pb.ExpertSpec, self.experts.model_dump()))
        return model


class PairShape(BaseModel):
    """How preference pairs are learned from; see `PairSpec` in jobs.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float | None = Field(default=None, gt=0, le=100)
    loss: Literal["", "sigmoid", "ipo"] = ""
    label_smoothing: float = Field(default=0, ge=0, lt=0.5)
    likelihood_weight: float = Field(default=0, ge=0, le=100)
    centring: float = Field(default=0, ge=0, le=100)
    margin: float = Field(default=0, ge=0, le=100)
    max_chosen_drop: float | None = Field(default=None, ge=0, le=100)


class PolicyShape(BaseModel):
    """How a policy learns from its own answers; see `PolicySpec` in jobs.proto. What is not
    given is the trainer's default, which also checks the values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=0, ge=0, le=1024)
    max_new_tokens: int = Field(default=0, ge=0, le=1 << 20)
    temperature: float | None = None
    epochs: int = Field(default=0, ge=0, le=64)
    minibatches: int = Field(default=0, ge=0, le=1 << 16)
    clip_low: float | None = None
    clip_high: float | None = None
    entropy_weight: float | None = None
    kl_coefficient: float | None = None
    kl_target: float | None = None
    kl_estimator: Literal["", "k1", "k2", "k3"] = ""
    kl_in: Literal["", "reward", "loss"] = ""
    gamma: float | None = None
    lam: float | None = None
    whiten_advantages: bool | None = None
    whiten_rewards: bool | None = None
    by_std: bool | None = None
    normalise: Literal["", "tokens", "answers", "constant"] = ""
    missing_eos_penalty: float | None = None
    bootstrap: bool | None = None
    stop_kl: float | None = None
    max_update_kl: float | None = None
    kl_explosion: float | None = None
    rollouts: Literal["", "local", "shards"] = ""
    ahead: int = Field(default=0, ge=0, le=1)
    importance_cap: float | None = None


class LoraShape(BaseModel):
    """Adapters in place of all weights; see `LoraSpec` in jobs.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0, le=1e6)  # None: twice the rank
    dropout: float = Field(default=0, ge=0, le=0.95)
    targets: tuple[str, ...] = Field(default=(), max_length=64)  # (): all maps of the blocks
    rslora: bool = False
