"""Specifications of adapters: what a request may say, and whether it fits the model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plinth.models.adapters.linear_maps import check_targets, chosen, map_names
from plinth.models.adapters.lora import LoraConfig
from plinth.models.config import ModelConfig
from plinth.shared.errors import InvalidArgument
from plinth.shared.kinds import ADAPTER_SUFFIX
from plinth.shared.store import ArtifactStore
from plinth.trainer.refusals import in_range, refuse
from plinth.v1 import jobs_pb2 as pb

MAX_RANK, MAX_TARGETS = 1024, 64
_LONGEST_NAME = 64


def check_lora(spec: pb.TrainSpec) -> None:
    """Raise InvalidArgument for whatever can be told from the request alone."""
    if not spec.HasField("lora"):
        return
    if not spec.init_from:
        refuse("lora", "adapts a model that there is: give init_from instead of model")
    lora = spec.lora
    in_range("lora.rank", lora.rank, 1, MAX_RANK)
    if lora.HasField("alpha"):
        in_range("lora.alpha", lora.alpha, 1e-6, 1e6)
    in_range("lora.dropout", lora.dropout, 0.0, 0.95)
    if len(lora.targets) > MAX_TARGETS:
        refuse("lora.targets", f"{len(lora.targets)} names, at most {MAX_TARGETS}")
    if not all(lora.targets):
        refuse("lora.targets", "has an empty name")


def check_adapter_name(output_name: str, spec: pb.TrainSpec) -> None:
    """The adapter is an artifact of its own, whose name must fit too."""
    if spec.HasField("lora") and len(output_name + ADAPTER_SUFFIX) > _LONGEST_NAME:
        raise InvalidArgument(
            f"output_name: {output_name!r} leaves no room for {ADAPTER_SUFFIX!r}; use at most "
            f"{_LONGEST_NAME - len(ADAPTER_SUFFIX)} characters with lora",
            field="spec.output_name",
        )


def check_lora_targets(spec: pb.TrainSpec, store: ArtifactStore) -> None:
    """Of a job whose base is on the store: InvalidArgument for a target that the base has not, as
    far as manifests tell. Blocks on the store."""
    reward = spec.objective == pb.OBJECTIVE_REWARD
    try:
        check_targets(store, store.get(spec.init_from), list(spec.lora.targets), reward=reward)
    except InvalidArgument as wrong:
        raise _of_field(wrong) from wrong


def _of_field(wrong: InvalidArgument) -> InvalidArgument:
    return InvalidArgument(f"lora.{wrong.message}", field=f"spec.train.lora.{wrong.field}")


def lora_fields(spec: pb.TrainSpec, model: ModelConfig) -> dict[str, Any] | None:
    """The whole configuration of the adapters, checked against the model; None without."""
    if not spec.HasField("lora"):
        return None
    given = spec.lora
    config = LoraConfig(
        rank=given.rank,
        alpha=given.alpha if given.HasField("alpha") else 2.0 * given.rank,
        dropout=given.dropout,
        targets=tuple(given.targets),
        rslora=given.rslora,
    )
    head = not model.tie_embeddings and spec.objective != pb.OBJECTIVE_REWARD
    try:
        chosen(map_names(model.family, model.layers, head=head), model.family, config.targets)
    except InvalidArgument as wrong:
        raise _of_field(wrong) from wrong
    return asdict(config)
