"""Models that begin in a run: every family that the API names, and none that it does not."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from plinth.coordinator.steps.train_shapes import ModelShape
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.families import FAMILIES
from plinth.models.hf import config as hf_config
from plinth.models.parts import Experts
from plinth.shared.api.enums import words
from plinth.shared.errors import InvalidArgument
from plinth.trainer.new_models import new_model
from plinth.v1 import jobs_pb2 as pb

BEGUN = words(pb.ModelFamily)


WITH_EXPERTS = [name for name, family in FAMILIES.items() if "router" in family.names.parts]


def shape(family: str, **fields: Any) -> pb.ModelSpec:
    sizes = {"layers": 4, "hidden": 32, "heads": 4, "context": 16, "tie_embeddings": True}
    return ModelShape(family=family, **{**sizes, **fields}).message()


def test_the_api_names_no_family_that_there_is_not() -> None:
    assert set(BEGUN) <= set(FAMILIES)


@pytest.mark.parametrize("family", BEGUN)
def test_a_model_of_each_family_begins_and_is_what_its_files_say(family: str) -> None:
    config = new_model(shape(family), 64, 16)
    again = hf_config.from_hf(hf_config.to_hf(config))
    for one in (again, config):  # as the layers take them
        object.__setattr__(one, "layer_kinds", one.kinds)
        object.__setattr__(one, "attention_scale", one.scale)
    assert again == config
    decoder = Decoder(config)
    decoder.init_weights(0)
    backend = SdpaBackend(1, 16)
    logits = decoder.logits(decoder(torch.arange(16), torch.arange(16), backend), backend)
    assert logits.shape == (16, 64)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_new_experts_are_as_many_as_are_asked_for_and_balanced(family: str) -> None:
    asked = {"count": 6, "per_token": 3}
    assert new_model(shape(family, experts=asked, intermediate=48), 64, 16).experts == Experts(
        6, 3, 48, balanced=True, balance=0.001
    )
    heavy = new_model(shape(family, experts={**asked, "balance": 0.25}), 64, 16).experts
    assert heavy is not None
    assert (heavy.balanced, heavy.balance) == (True, 0.25)
    without = new_model(shape(family, experts={**asked, "balance": 0.0}), 64, 16).experts
    assert without is not None
    assert not without.balanced
    usual = new_model(shape(family), 64, 16).experts
    assert usual is not None
    assert usual.balanced


def test_an_expert_has_a_width_of_its_own_where_the_files_say_it() -> None:
    narrow = {"count": 4, "per_token": 2, "intermediate": 24}
    made = new_model(shape("qwen3_moe", experts=narrow), 64, 16)
    assert made.experts is not None
    assert made.experts.width == 24
    with pytest.raises(InvalidArgument, match=r"24; a config\.json of 'mixtral' has one") as no:
        new_model(shape("mixtral", experts=narrow), 64, 16)
    assert no.value.field == "spec.train.model.experts.intermediate"
    assert new_model(shape("mixtral", experts=narrow, intermediate=24), 64, 16).intermediate == 24


@pytest.mark.parametrize(
    ("family", "experts", "field", "says"),
    [
        ("llama", {"count": 4, "per_token": 2}, "", "'llama', whose layers have none; 'mixtral'"),
        ("mixtral", {"count": 4, "per_token": 5}, ".per_token", "is 5, must be no more than the 4"),
        ("mixtral", {"per_token": 1}, ".count", "is 0, must be at least 1"),
        ("mixtral", {"count": 1}, ".per_token", "is 0, must be at least 1"),
        ("mixtral", {"count": 2, "per_token": 1, "balance": math.nan}, ".balance", "is nan, must"),
    ],
)
def test_experts_that_cannot_be(
    family: str, experts: dict[str, Any], field: str, says: str
) -> None:
    spec = shape(family)
    spec.experts.CopyFrom(pb.ExpertSpec(**experts))
    with pytest.raises(InvalidArgument, match=re.escape(says)) as caught:
        new_model(spec, 64, 16)
    assert caught.value.field == f"spec.train.model.experts{field}"


def test_a_pipeline_names_a_family_that_there_is() -> None:
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8, "heads": 1, "context": 8}
    assert all(ModelShape(family=word, **sizes).family == word for word in BEGUN)
    with pytest.raises(ValidationError, match="'gpt3' is no family to begin with; use llama or"):
        ModelShape(family="gpt3", **sizes)


@pytest.mark.parametrize(
    ("family", "experts", "says"),
    [
        ("qwen3", {"count": 4, "per_token": 2}, "given for 'qwen3', whose layers have none"),
        ("mixtral", {"count": 4, "per_token": 5}, "per_token is 5, at most the 4 of count"),
    ],
)
def test_a_pipeline_with_experts_that_cannot_be_is_refused_before_it_runs(
    family: str, experts: dict[str, int], says: str
) -> None:
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8, "heads": 1, "context": 8}
    with pytest.raises(ValidationError, match=says):
        ModelShape(family=family, experts=experts, **sizes)
