"""Rules of one's own are part of what a result is made from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator_replica import EXAMPLES
from plinth.coordinator.pipeline import input_digest, parse
from plinth.coordinator.steps import STEP_KINDS
from plinth.shared.source_roots import SourceRoots

# Every kind whose result depends on what rules say of answers.
JUDGED = {"train", "sample", "verify"}


@pytest.fixture(params=["module", "package"])
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The file of an installed distribution that registers a rule."""
    about = tmp_path / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    if request.param == "module":
        file, name = tmp_path / "my_rules_of_mine.py", "my_rules_of_mine"
    else:
        file, name = tmp_path / "my_pack" / "deep" / "rules.py", "my_pack.deep.rules"
        file.parent.mkdir(parents=True)
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").write_text("")
    (about / "entry_points.txt").write_text(f"[plinth.rewards]\nmine = {name}\n")
    file.write_text("raise AssertionError('nothing of it is run here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def digests() -> dict[str, str]:
    roots = SourceRoots(())
    return {
        name: input_digest(
            spec, inputs={}, surroundings=STEP_KINDS[spec.kind].surroundings(spec, "r", roots)
        )
        for name, spec in parse(EXAMPLES).steps.items()
    }


def test_an_edited_rule_is_another_one(rule: Path) -> None:
    before = digests()
    rule.write_text("VALUE = 2\n")
    after = digests()
    assert {name for name in before if before[name] != after[name]} == JUDGED
    assert digests() == after
    assert not {"my_rules_of_mine", "my_pack"} & sys.modules.keys()


def test_a_step_without_rules_does_not_depend_on_them(rule: Path) -> None:
    text = """
name: a
steps:
  sampled: {kind: sample, model: m, prompts: p, rewards: {}, reward: r}
  tuned: {kind: train, objective: clm, dataset: d, init_from: m, steps: 2}
"""
    steps: Any = parse(text).steps
    for spec in steps.values():
        made = STEP_KINDS[spec.kind].surroundings(spec, "r", SourceRoots(()))
        assert "rules" not in made
