"""Prompts out of topics and constraints, or a user's file; what is held out stays unseen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from plinth.coordinator.steps.contract import StepOutcome, Work
from plinth.coordinator.steps.prompts import PromptsSpec, PromptsStep, split
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.intake import Intake
from plinth.shared.prompt_set import Prompt, read_prompts, write_prompts
from plinth.shared.store import ArtifactStore

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
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        ('{"prompt": "\udcff"}', "not UTF-8"),
        ('{"prompt": "x", "checks": [3]}', "'checks' must be"),
        ('{"prompt": "x", "checks": [{}]}', "with a 'kind'"),
        ('{"prompt": "x", "group": 3}', "'group' must be"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'\ufeff{{"prompt": "good"}}\n{line}\n', "utf-8", "surrogateescape")
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


def test_a_prompt_that_repeats_a_held_out_one_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    texts = ["What is bread?", "Why?", "what is  BREAD?", "Who?", "What is bread?"]
    write_prompts(map(Prompt, texts), path)
    intake = Intake("prompts")
    sides = split(PromptsSpec(kind="prompts", file=str(path), held_out=1), intake)
    assert [prompt.text for prompt in sides["train"]] == ["Why?", "Who?"]
    assert [prompt.text for prompt in sides["validation"]] == ["What is bread?"]
    assert intake == Intake("prompts", 3, {"that repeat a held-out one": 2})
    write_prompts([Prompt("a?"), Prompt("A?"), Prompt(" a?")], path)
    with pytest.raises(InvalidArgument, match="1 different prompts in 3 lines"):
        split(PromptsSpec(kind="prompts", file=str(path), held_out=1), Intake("prompts"))


def test_topics_that_are_the_same_are_one(tmp_path: Path) -> None:
    intake = Intake("prompts")
    spec = PromptsSpec(**{**GRID, "topics": ["bread", "tea", "Bread", "rain"], "held_out": 1})
    sides = split(spec, intake)
    told = {side: {prompt.text.lower() for prompt in prompts} for side, prompts in sides.items()}
    assert not told["train"] & told["validation"]
    assert intake.left_out == {"topics that are there already": 1}
    with pytest.raises(ValidationError, match="must leave some of the 1"):
        PromptsSpec(**{**GRID, "topics": ["bread", " BREAD"], "held_out": 1})


async def test_where_most_is_left_out_the_step_asks(tmp_path: Path) -> None:
    """Eighty prompts of which one is held out are one prompt."""
    path = tmp_path / "p.jsonl"
    texts = ["A?"] * 80 + [f"q{n}" for n in range(10)] + ["a?", "b?"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    tools: Any = SimpleNamespace(store=ArtifactStore((tmp_path / "store").as_uri()))

    async def outcome(**more: Any) -> StepOutcome:
        spec = PromptsSpec(kind="prompts", file=str(path), held_out=2, **more)
        work = Work("r", "s", spec, {}, "sha256:0", "p-s")
        (event,) = [event async for event in PromptsStep().execute(work, tools)]
        assert isinstance(event, StepOutcome)
        return event

    with pytest.raises(InvalidArgument, match="leaves out 87%, more than 50%") as caught:
        await outcome()
    advised = caught.value.message.split("max_left_out: ")[1]
    assert (await outcome(max_left_out=float(advised))).metrics["train"] == 10
