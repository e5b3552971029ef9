"""--corpus: one setting, and all steps of a pipeline follow it, their names too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from plinth.cli.corpus_option import corpus_overrides
from plinth.cli.quickstart import PIPELINES
from plinth.cli.runs import new_run_id
from plinth.coordinator.pipeline import Pipeline, parse
from plinth.shared.errors import InvalidArgument

QUICKSTART = (PIPELINES / "quickstart.yaml").read_text("utf-8")


def with_corpus(folder: Path, text: str = QUICKSTART, **given: str) -> Pipeline:
    folder.mkdir(exist_ok=True)
    return parse(text, corpus_overrides(yaml.safe_load(text), folder, given))


def names(pipeline: Pipeline) -> Iterator[str]:
    """All that a run of it publishes under, and serves."""
    for name, step in pipeline.steps.items():
        yield step.name if step.kind == "serve" else pipeline.output_name(name)  # type: ignore[attr-defined]


def test_no_step_of_the_quickstart_asks_about_python(tmp_path: Path) -> None:
    """At its fractions the same texts are held out."""
    steps: Any = with_corpus(tmp_path).steps
    data = {name: step for name, step in steps.items() if step.kind == "data"}
    assert not [name for name, step in data.items() if step.builtin]
    assert data["corpus"].corpus_dir == str(tmp_path)
    for name, form in (("instructions", "chats"), ("preferences", "pairs")):
        assert (data[name].corpus, data[name].passages) == ("$corpus", form)


@pytest.mark.parametrize("file", ["quickstart.yaml", "align.yaml"])
def test_nothing_is_published_or_served_under_the_names_of_the_file(
    file: str, tmp_path: Path
) -> None:
    """A run on other text moves no alias of the file's own models and takes none of their names."""
    text = (PIPELINES / file).read_text("utf-8")
    for folder in ("vim", "Émacs 29") if file == "align.yaml" else ():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.jsonl").write_text("{}")
    own = parse(text)
    others = [set(names(with_corpus(tmp_path / folder, text))) for folder in ("vim", "Émacs 29")]
    assert not set(names(own)) & others[0]
    assert not others[0] & others[1]


def test_names_say_what_they_are_of(tmp_path: Path) -> None:
    made = with_corpus(tmp_path / "Vim Docs")
    assert made.name == "quickstart-vim-docs"
    assert made.output_name("chat") == "quickstart-vim-docs"
    assert made.output_name("dpo") == "quickstart-vim-docs-dpo"
    served = [step.name for step in made.steps.values() if step.kind == "serve"]  # type: ignore[attr-defined]
    assert served == ["quickstart-vim-docs", "aligned-vim-docs"]
    long = with_corpus(
        tmp_path / ("x" * 80), QUICKSTART.replace("name: quickstart", "name: " + "q" * 40)
    )
    assert len(long.name) == 40
    assert with_corpus(tmp_path / "漢字").name != with_corpus(tmp_path / "かな").name


def test_what_was_said_stands(tmp_path: Path) -> None:
    made: Any = with_corpus(
        tmp_path / "vim",
        **{"name": "mine", "steps.aligned.name": "best", "steps.corpus.validation_fraction": "0.3"},
    )
    assert made.name == made.output_name("chat") == made.steps["online"].name == "mine"
    assert made.steps["aligned"].name == "best"
    assert made.steps["corpus"].validation_fraction == 0.3
    assert new_run_id(QUICKSTART, made.name).startswith("mine-")
    assert len(new_run_id(QUICKSTART, "q" * 40)) <= 40


@pytest.mark.parametrize("source", ["samples", "prompts"])
def test_a_step_that_reads_no_text_is_not_given_the_folder(source: str, tmp_path: Path) -> None:
    text = f"{{name: p, steps: {{one: {{kind: data, {source}: s, tokenizer: m}}}}}}"
    with pytest.raises(InvalidArgument, match="no step of this pipeline reads a folder"):
        with_corpus(tmp_path, text)


PAIRS = "{kind: data, builtin: stdlib-preferences}"


@pytest.mark.parametrize("name", ["corpus", "pairs"])
def test_text_is_no_rows(name: str, tmp_path: Path) -> None:
    """A reward model would learn from paragraphs what it is to learn from pairs."""
    text = f"{{name: p, steps: {{{name}: {PAIRS}}}}}"
    with pytest.raises(InvalidArgument, match=r"the folder has no \.jsonl file"):
        with_corpus(tmp_path, text)
    (tmp_path / "pairs.jsonl").write_text("{}")
    steps: Any = with_corpus(tmp_path, text).steps
    assert steps[name].corpus_dir == str(tmp_path)
    (tmp_path / "a.md").write_text("text")
    for pipeline in (text, (PIPELINES / "align.yaml").read_text("utf-8")):
        with pytest.raises(InvalidArgument, match=r"is made of pairs, and a\.md is text"):
            with_corpus(tmp_path, pipeline)


def test_the_only_step_that_reads_text_is_found_among_others(tmp_path: Path) -> None:
    text = f"{{name: p, steps: {{pairs: {PAIRS}, texts: {{kind: data, builtin: stdlib}}}}}}"
    steps: Any = with_corpus(tmp_path, text).steps
    assert steps["texts"].corpus_dir == str(tmp_path)
    assert (steps["pairs"].corpus, steps["pairs"].passages) == ("$texts", "pairs")


def test_advice_that_is_given_is_followed(tmp_path: Path) -> None:
    text = "{name: p, steps: {a: {kind: data, builtin: stdlib}, b: {kind: data, builtin: stdlib}}}"
    with pytest.raises(InvalidArgument) as caught:
        with_corpus(tmp_path, text)
    message = caught.value.message
    for name in message.split("there is: ")[1].rstrip(")").split(", "):
        said = [word.replace("NAME", name) for word in message.split() if "NAME" in word]
        steps: Any = parse(text, dict(word.split("=", 1) for word in said)).steps
        assert (steps[name].corpus_dir, steps[name].builtin) == (str(tmp_path), None)
