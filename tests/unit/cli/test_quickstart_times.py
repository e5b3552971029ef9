"""docs/quickstart.md says which settings are for how much time: of the pipeline as it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from plinth.cli.corpus_option import corpus_overrides
from plinth.cli.quickstart import PIPELINE
from plinth.cli.runs import parse_overrides
from plinth.coordinator.pipeline import parse

PAGE = Path(__file__).parents[3] / "docs" / "quickstart.md"
TEXT = PIPELINE.read_text("utf-8")


def rows() -> list[list[str]]:
    """Cells of the table, a row a step."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def settings(column: int) -> dict[str, str]:
    return {row[1]: row[column] for row in rows()}


def at(path: str) -> Any:
    value = yaml.safe_load(TEXT)
    for key in path.split("."):
        assert key in value, f"{PAGE.name} names {path}, which the pipeline has not"
        value = value[key]
    return value


def test_what_it_names_is_in_the_pipeline() -> None:
    named = set(re.findall(r"`(steps\.[a-z_.]+)`", PAGE.read_text()))
    assert len(named) > len(rows())
    for path in named:
        at(path)


def test_the_file_is_what_the_first_column_of_settings_says() -> None:
    for path, value in settings(3).items():
        assert at(path) == int(value), path


def test_every_step_that_is_given_a_length_is_told_of() -> None:
    steps = yaml.safe_load(TEXT)["steps"]
    given = {
        f"steps.{name}.{field}"
        for name, step in steps.items()
        for field in ("max_seconds", "steps", "prompts")
        if field in step
    }
    assert settings(3).keys() == given


def given(command: int) -> dict[str, str]:
    """The settings of one of the page's commands."""
    text = PAGE.read_text().replace("\\\n", "")
    words = shlex.split(re.findall(r"^plinth run (.*)$", text, flags=re.MULTILINE)[command])
    assert (words[0], set(words[1::2])) == ("ops/pipelines/quickstart.yaml", {"--set"})
    return parse_overrides(words[2::2])


@pytest.mark.parametrize("command", [0, 1])
def test_a_command_sets_what_its_column_says(command: int) -> None:
    settings_given, column = given(command), command + 4
    assert settings_given == settings(column)
    assert parse(TEXT, settings_given).steps.keys() == parse(TEXT).steps.keys()
    more = settings(column - 1)
    assert all(int(value) < int(more[path]) for path, value in settings_given.items())


def test_without_alignment_a_tuned_model_is_served() -> None:
    left = parse(TEXT, given(2)).steps
    assert [name for name, step in left.items() if step.kind == "serve"] == ["online"]
    assert [name for name, step in left.items() if step.kind == "train"] == ["pretrain", "chat"]


def test_chats_of_ones_own_beside_text_of_ones_own(tmp_path: Path) -> None:
    text = PAGE.read_text()
    words = shlex.split(re.findall(r"^plinth run (.*--corpus .*)$", text, flags=re.MULTILINE)[0])
    assert words[1:2] + words[3:4] == ["--corpus", "--set"]
    said = parse_overrides(words[4:])
    steps: Any = parse(TEXT, corpus_overrides(yaml.safe_load(TEXT), tmp_path, said)).steps
    rows = steps["instructions"]
    assert (rows.builtin, rows.corpus, rows.passages) == (None, None, None)
    assert {"steps.instructions.corpus_dir": rows.corpus_dir} == said
    assert steps["corpus"].corpus_dir == str(tmp_path)
    assert steps["preferences"].passages == "pairs"
