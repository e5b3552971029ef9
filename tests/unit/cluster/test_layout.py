from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plinth.cluster.layout import (
    ComponentState,
    Layout,
    StackPlan,
    StackState,
    StageSpec,
    settings_environment,
)
from plinth.shared.errors import DataLoss
from plinth.shared.settings import load_settings


def test_another_process_loads_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plinth.yaml").write_text("engine: {block_size: 32}\n")
    monkeypatch.setenv("PLINTH_GATEWAY__AUTH", "off")
    monkeypatch.setenv("PLINTH_REDIS_URL", "redis://:secret@127.0.0.1:7000/0")
    settings = load_settings(data_dir=tmp_path, gateway__port=0, engine__prefix_cache=False)
    variables = settings_environment(settings)
    assert "PLINTH_ENGINE__BLOCK_SIZE" not in variables, "the file says it"
    for key in ("PLINTH_GATEWAY__AUTH", "PLINTH_REDIS_URL"):
        monkeypatch.delenv(key)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert load_settings().model_dump() == settings.model_dump()


def test_state_survives_writing_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    state = StackState("abc", redis_url="unix://:secret@/x", sessions=[7])
    state.components["redis"] = ComponentState("ready", 5, 1.5, "here", restarts=2)
    state.write(path)
    assert StackState.read(path) == state
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert StackState.read(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["{", '{"schema": 0}', "{}"])
def test_a_state_that_is_not_understood_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(DataLoss, match="plinth down"):
        StackState.read(tmp_path / "stack.json")


def test_only_what_needs_new_replicas_changes_a_digest() -> None:
    spec = StageSpec("inference-chat", "m:build", "inference", {"artifact": "chat@1"})
    for same in (
        replace(spec, replicas=3),
        replace(spec, max_replicas=3),
        replace(spec, load_over_s=60.0, down_after_s=60.0),
    ):
        assert same.digest() == spec.digest()
        assert same.numbers() != spec.numbers()
    assert replace(spec, max_replicas=1).numbers() == spec.numbers()
    for other in (
        replace(spec, options={"artifact": "chat@2"}),
        replace(spec, gpus=1.0),
        replace(spec, factory="m:other"),
        replace(spec, drain_s=60.0),
    ):
        assert other.digest() != spec.digest()


def test_a_plan_survives_the_command_line() -> None:
    plan = StackPlan(stages=(StageSpec("echo", "m:b", options={"a": 1}),), gateway="")
    assert StackPlan.from_json(plan.to_json()) == plan
    names = [stage.name for stage in StackPlan().stages]
    assert names == ["tokenizer", "trainer", "reward", "coordinator"]


def test_rays_folder_is_short_and_the_same_for_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    layout = Layout(tmp_path / "data")
    assert len(str(layout.ray_dir)) < 40
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert Layout(tmp_path / "link").ray_dir == layout.ray_dir
    assert Layout(tmp_path / "other").ray_dir != layout.ray_dir
