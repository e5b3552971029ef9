"""A model of experts behind an engine, as it is served."""

from __future__ import annotations

from pathlib import Path

import pytest

import engines
from checkpoints import random_mixtral, random_qwen3_moe
from plinth.engine.request import Sampling
from plinth.inference.loading import load_engine
from plinth.models.layers import Linear
from plinth.models.mixture import Map
from plinth.shared.settings_sections import EngineSettings


@pytest.mark.parametrize("random_model", [random_mixtral, random_qwen3_moe])
def test_packed_experts_alone_are_kept(random_model, tmp_path: Path) -> None:
    """What was packed is not held twice, and nothing that is served was lost."""
    folder = random_model(tmp_path / "m")
    loaded = load_engine(folder, EngineSettings())
    maps = [m for m in loaded.engine.runner.decoder.modules() if isinstance(m, Linear | Map)]
    assert len(maps) > 40
    assert all(one.weight.numel() == 0 for one in maps)
    prompts = [(5, 9, 200, 31), tuple(range(3, 60))]
    sampling = Sampling(temperature=0, max_tokens=12)
    served, _ = engines.complete(loaded.engine, prompts, sampling)
    assert served == engines.complete(engines.engine(folder), prompts, sampling)[0]
