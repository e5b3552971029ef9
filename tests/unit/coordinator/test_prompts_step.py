"""Prompts out of topics and constraints, or a user's file; what is held out stays unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plinth.coordinator.steps.prompts import PromptsSpec, split
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.intake import Intake
from plinth.shared.prompt_set import Prompt, read_prompts, write_prompts

BRIEF = {"name": "brief", "ask": "Be brief.", "checks": [{"kind": "max_words", "n": 5}]}
LOWER = {"name": "lower", "ask": "No capitals.", "checks": [{"kind": "lower_case"}]}
GRID: dict[str, Any] = {
    "kind": "prompts",
    "topics": ["bread", "cats", "snow", "tea"],
    "constraints": [BRIEF, LOWER],
    "held_out": 1,
}


def test_every_topic_meets_every_constraint_and_whole_topics_are_held_out() -> None:
    sides = split(PromptsSpec(**GRID), Intake("prompts"))
    assert len(sides["train"]) == 6
    assert {p.text for p in sides["validation"]} == {
        "Tell me about tea. Be brief.",
        "Tell me about tea. No capitals.",
    }
    assert not any("tea" in p.text for p in sides["train"])
    counts = {g: sum(p.group == g for p in sides["train"]) for g in ("brief", "lower")}
    assert counts == {"brief": 3, "lower": 3}
    assert json.loads(sides["train"][0].checks_json) == BRIEF["checks"]


def test_a_file_of_prompts_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    prompts = [Prompt(f"q{n} é\n", "g", ({"kind": "no_commas"},)) for n in range(5)]
    assert write_prompts(prompts, path) == 5
    assert list(read_prompts(path)) == prompts
    sides = split(PromptsSpec(kind="prompts", file=str(path), held_out=2), Intake("prompts"))
    assert (sides["train"], sides["validation"]) == (prompts[:3], prompts[3:])
    with pytest.raises(InvalidArgument, match="must leave some"):
        split(PromptsSpec(kind="prompts", file=str(path), held_out=5), Intake("prompts"))
    with pytest.raises(NotFound):
        split(PromptsSpec(kind="prompts", file="/nowhere/p.jsonl", held_out=1), Intake("prompts"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "an object"),
        ('{"prompt": ""}', "'prompt' must be"),
        ('{"prompt": 3}', "'prompt' must be"),
        ('{"prompt": "x", "checks": [3]}', "'checks' must be"),
        ('{"prompt": "x", "checks": [{}]}', "with a 'kind'"),
        ('{"prompt": "x", "group": 3}', "'group' must be"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(InvalidArgument, match=says) as caught:
        list(read_prompts(path))
    assert "p.jsonl:2" in caught.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"topics": []}, "either a file, or topics"),
        ({"constraints": []}, "need constraints"),
        ({"ask": "Tell me."}, "{topic}"),
        ({"held_out": 4}, "must leave some of the 4"),
        ({"file": "relative.jsonl", "topics": []}, "absolute"),
        ({"constraints": [{**BRIEF, "checks": []}]}, "at least 1"),
    ],
)
def test_a_spec_that_can_not_work_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PromptsSpec(**{**GRID, **change})
