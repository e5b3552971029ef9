"""Models that begin in a run: every family that the API names, and none that it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from plinth.coordinator.steps.train import ModelShape
from plinth.kernels.training import SdpaBackend
from plinth.models import hf_config
from plinth.models.decoder import Decoder
from plinth.models.families import FAMILIES
from plinth.shared.api.enums import words
from plinth.trainer.planning import new_model
from plinth.v1 import jobs_pb2 as pb

BEGUN = words(pb.ModelFamily)


def test_the_api_names_every_family_but_those_with_experts() -> None:
    assert set(BEGUN) == {n for n, family in FAMILIES.items() if "router" not in family.names.parts}


@pytest.mark.parametrize("family", BEGUN)
def test_a_model_of_each_family_begins_and_is_what_its_files_say(family: str) -> None:
    spec = pb.ModelSpec(
        family=getattr(pb, f"MODEL_FAMILY_{family.upper()}"),
        **{"layers": 4, "hidden": 32, "heads": 4, "context": 16, "tie_embeddings": True},
    )
    config = new_model(spec, SimpleNamespace(vocab_size=64), 16)  # type: ignore[arg-type]
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


def test_a_pipeline_names_a_family_that_there_is() -> None:
    shape = {"layers": 1, "hidden": 8, "heads": 1, "context": 8}
    assert all(ModelShape(family=word, **shape).family == word for word in BEGUN)
    with pytest.raises(ValidationError, match="'gpt3' is no family to begin with; use llama or"):
        ModelShape(family="gpt3", **shape)
    with pytest.raises(ValidationError, match="'mixtral' can't be begun: import a model of it"):
        ModelShape(family="mixtral", **shape)
