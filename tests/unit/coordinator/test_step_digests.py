"""A digest names all that shapes a result, and nothing else: by every field of every kind of step,
of a training's configuration, and by the code's version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from coordinator_replica import EXAMPLES
from job_specs import train_spec
from plinth.coordinator import pipeline
from plinth.coordinator.pipeline import input_digest, parse
from plinth.coordinator.rewards import WeightedRule
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.contract import StepSpec
from plinth.coordinator.steps.data import fingerprint
from plinth.shared import file_digests
from plinth.shared.file_digests import file_digest
from plinth.shared.store import ArtifactStore
from plinth.trainer.execution import with_judges_fixed
from plinth.trainer.loop.config import TrainConfig
from plinth.v1 import rewards_pb2

SPECS = parse(EXAMPLES).steps
# What a result does not depend on: when it is made, and what it is called.
NO_PART = {"after", "output"}


def digest(spec: StepSpec, **inputs: str) -> str:
    return input_digest(spec, inputs=inputs, surroundings={})


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Other values that a field may have, each different in one place."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            for other in others(getattr(value, name), info.annotation):
                yield value.model_copy(update={name: other})
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif origin is Literal:
        yield from (part for part in parts if part != value)
    elif isinstance(value, str):
        yield f"{value}x"
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from ({**value, key: other} for other in others(one, type(one)))
            yield {key + "x": one}
    elif isinstance(value, tuple):
        part = parts[0] if parts else str
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield (*value, *(value[:1] or [next(given(part))]))
            for place, one in enumerate(value):
                yield from ((*value[:place], o, *value[place + 1 :]) for o in others(one, part))
        else:
            yield (*value, "x")
    elif value is None:  # something is given
        yield from (one for part in parts if part is not NoneType for one in given(part))


def given(annotation: Any) -> Iterator[Any]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        needed = {n: 1 for n, info in annotation.model_fields.items() if info.is_required()}
        made = annotation.model_construct(**needed)
        yield made
        yield from others(made, annotation)
    elif origin is Literal:
        yield parts[0]
    elif origin is dict:
        yield {"x": WeightedRule(rule={"kind": "y"})}
    elif hasattr(annotation, "__metadata__"):
        yield from given(annotation.__origin__)
    else:
        yield annotation(1)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # values of no other use
@pytest.mark.parametrize("kind", STEP_KINDS)
def test_every_setting_of_every_kind_is_in_its_digest(kind: str) -> None:
    spec = SPECS[kind]
    assert spec.kind == kind
    tried = 0
    for name, info in type(spec).model_fields.items():
        if name == "kind" or name in type(spec).INPUTS:
            continue
        for other in others(getattr(spec, name), info.annotation):
            changed = spec.model_copy(update={name: other})
            assert (digest(changed) == digest(spec)) == (name in NO_PART), (name, other)
            tried += 1
    assert tried >= len(type(spec).model_fields) - len(type(spec).INPUTS) - 1


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_inputs_count_by_their_content(kind: str) -> None:
    spec = SPECS[kind]
    for name in type(spec).INPUTS:
        renamed = spec.model_copy(update={name: "something-else:prod"})
        assert digest(renamed, **{name: "a"}) == digest(spec, **{name: "a"})
        assert digest(spec, **{name: "b"}) != digest(spec, **{name: "a"})


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_a_step_that_was_mended_is_done_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: digest(spec) for name, spec in SPECS.items()}
    versions = {**pipeline.STEP_VERSIONS, kind: pipeline.STEP_VERSIONS[kind] + 1}
    monkeypatch.setattr(pipeline, "STEP_VERSIONS", versions)
    changed = {name for name, spec in SPECS.items() if digest(spec) != before[name]}
    assert changed == {kind}


# Of a training: where things lie on this machine, what is no part of the model, and how politely
# it runs. What lies there is in `made_from`.
PLACES = {"dataset", "init_from", "reward", "candidates"}
NO_PART_OF_TRAINING = PLACES | {"base", "background", "checkpoint_every", "eval_every"}


def test_a_checkpoint_is_gone_on_from_by_the_very_same_training_only(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    config = TrainConfig(
        objective="ppo",
        dataset=str(tmp_path),
        init_from="/a",
        model=None,
        sequence_length=8,
        batch_size=2,
        micro_batch_size=1,
        steps=1,
        max_seconds=0,
        learning_rate=1e-3,
        pairs={"beta": 0.1},
        policy={"samples": 2},
        reward="/r",
        rewards=({"name": "x", "model": "judge@1"},),
        made_from={"init_from": "sha256:1", "reward": "sha256:2", "version": "1"},
    )
    for one in fields(TrainConfig):
        if one.name in NO_PART_OF_TRAINING or one.name == "lora":
            continue
        value = getattr(config, one.name)
        other = {"x": 1} if value is None or isinstance(value, dict) else next(others(value, None))
        assert replace(config, **{one.name: other}).digest() != config.digest(), one.name
    for key in config.made_from:
        other_content = {**config.made_from, key: "sha256:3"}
        assert replace(config, made_from=other_content).digest() != config.digest(), key
    before = config.digest()
    assert replace(config, init_from="/b", reward="/s").digest() == before
    (tmp_path / "dataset.json").write_text("{ }")
    assert config.digest() != before


def test_an_alias_among_rewards_is_fixed_and_its_content_counts(
    store: ArtifactStore, tmp_path: Path
) -> None:
    for text in ("one", "two"):
        (tmp_path / text).write_text(text)
        store.publish("judge", "reward", tmp_path / text)
    store.set_alias("judge", "prod", 1)
    spec = train_spec(
        rewards=[
            rewards_pb2.RewardSource(name="learned", model="judge:prod"),
            rewards_pb2.RewardSource(name="brief", rule={}),
        ]
    )
    fixed, first = with_judges_fixed(spec, store)
    assert [source.model for source in fixed.rewards] == ["judge@1", ""]
    assert spec.rewards[0].model == "judge:prod"
    store.set_alias("judge", "prod", 2)
    fixed, second = with_judges_fixed(spec, store)
    assert fixed.rewards[0].model == "judge@2"
    assert first.keys() == second.keys() == {"rewards.learned"}
    assert first != second


def test_a_file_edited_with_its_size_and_time_kept_is_another_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    about = path.stat()
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    path.write_text("two")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert fingerprint(tmp_path) != before
    path.write_text("one")  # and the same text is the same corpus, whenever it was written
    assert fingerprint(tmp_path) == before


def test_a_file_that_did_not_change_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_SETTLED_NS", -1)  # as if it had been there for long
    path = tmp_path / "a"
    path.write_text("one")
    first = file_digest(path)
    with monkeypatch.context() as patch:
        patch.setattr(file_digests.hashlib, "file_digest", None)  # it would fail
        assert file_digest(path) == first
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock has ticked
        path.write_text("two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path) != first
