"""What the launcher asks Ray Train for; the workers themselves are in test_group.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plinth.trainer.launch import RayLauncher


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("resource", "asked"),
    [("", {"CPU": 0.5}), ("plinth/train-worker", {"CPU": 0.5, "plinth/train-worker": 1.0})],
)
def test_workers_go_where_their_resource_is(
    resource: str, asked: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.v2.api import data_parallel_trainer

    seen: list[Any] = []

    class Recorder:
        def __init__(self, *_: object, scaling_config: Any, **__: object) -> None:
            seen.append(scaling_config)

        def fit(self) -> None:
            """Nothing to run."""

    monkeypatch.setattr(data_parallel_trainer, "DataParallelTrainer", Recorder)
    config: Any = SimpleNamespace(device="cpu", workers=3)
    RayLauncher(0.5, resource)._fit(tmp_path / "job", config)
    (scaling,) = seen
    assert scaling.num_workers == 3
    assert scaling.resources_per_worker == asked
