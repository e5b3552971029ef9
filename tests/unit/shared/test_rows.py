"""The shapes of rows, as docs/data.md has them: recognised exactly, or refused by what was seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.cli.preferences import read_tasks
from plinth.coordinator.preferences.pairs import read_lines
from plinth.coordinator.preferences.specs import make_task
from plinth.shared.corpus_folder import SUFFIXES
from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import PAGE, hh_dialogue, turns_json
from plinth.shared.prompt_set import read_prompts
from plinth.shared.rows import parse_pair, parse_row
from plinth.trainer.data.documents import parse_document
from plinth.trainer.data.selected import read_scored
from plinth.v1 import preferences_pb2 as pb

TEXT = (Path(__file__).parents[3] / PAGE).read_text(encoding="utf-8")
QUESTION, ROCK, CHEESE = ("user", "What is the moon?"), ("assistant", "A rock."), "Cheese."


def examples(kind: str) -> list[str]:
    blocks = re.findall(rf"^```json {kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines, kind
    return lines


@pytest.mark.parametrize("form", ["text", "messages", "pairs"])
def test_the_page_of_a_corpus(form: str) -> None:
    for line in examples(f"corpus {form}"):
        document = parse_document(line, "page:1")
        assert document.form == form
        if form == "text":
            assert document.text == "The moon is a rock."
        elif form == "pairs":
            assert (*document.messages[:-1], document.messages[-1][1].strip()) == (
                QUESTION,
                ROCK[1],
            )
            assert document.rejected.strip() == CHEESE
        else:
            spoken = [turn for turn in document.messages if turn[0] != "system"]
            assert spoken[:2] == [QUESTION, ROCK]


@pytest.mark.parametrize("line", examples("refused"))
def test_what_the_page_says_is_refused(line: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_document(line, "rows.jsonl:7")
    message = caught.value.message
    assert message.startswith("rows.jsonl:7: ")
    # What was seen: a key of the row, or of its messages.
    assert any(f"'{key}'" in message for key in re.findall(r'"(\w+)":', line))


def test_the_page_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ask = pb.ImportPairsRequest(jsonl="\n".join(examples("import")).encode())
    ((_, _, judgement),) = read_lines(ask, "c")
    assert (judgement.source, judgement.annotator) == (pb.JUDGEMENT_SOURCE_HUMAN, "ann")
    path.write_text("\n".join(examples("tasks")))
    assert [len(make_task(ask.task.spec, "c", where).responses) for where, ask in
            read_tasks(path)] == [2, 2]  # fmt: skip
    path.write_text("\n".join(examples("prompts")))
    assert [len(prompt.checks) for prompt in read_prompts(path)] == [1, 0]
    path.write_text("\n".join(examples("samples")))
    assert [(one.reward, one.logprob) for one in read_scored(path)] == [(1.0, -0.5)]


def test_the_page_names_every_kind_of_file() -> None:
    assert all(f"`{suffix}`" in TEXT for suffix in SUFFIXES)


WORDS = st.text("ab \n", min_size=1).map(str.strip).filter(bool)
PROMPTS = st.lists(WORDS, min_size=1, max_size=5).map(
    lambda said: tuple(
        ("assistant" if n % 2 else "user", text) for n, text in enumerate(said[: len(said) | 1])
    )[: len(said) - (len(said) + 1) % 2]
)


@given(prompt=PROMPTS, better=WORDS, worse=WORDS, extra=st.dictionaries(WORDS, WORDS, max_size=2))
def test_every_shape_of_a_pair_is_the_same_pair(
    prompt: Any, better: str, worse: str, extra: dict[str, str]
) -> None:
    """Each written out by hand from one pair."""
    if better == worse:
        return
    chosen, rejected = (*prompt, ("assistant", better)), (*prompt, ("assistant", worse))
    whole = {"chosen": turns_json(chosen), "rejected": turns_json(rejected)}
    answers = {"chosen": turns_json(chosen[-1:]), "rejected": turns_json(rejected[-1:])}
    dialogues = {"chosen": hh_dialogue(chosen, ""), "rejected": hh_dialogue(rejected, "")}
    opened = hh_dialogue(prompt, "") + "\n\nAssistant:"
    rows = [
        whole,
        {"prompt": turns_json(prompt), **answers},
        {"prompt": turns_json(prompt), **whole},
        {"prompt": turns_json(prompt), **whole, "messages": turns_json(chosen)},
        {"prompt": turns_json(prompt), "chosen": better, "rejected": worse},
        dialogues,
        {"prompt": opened, **dialogues},
        {"prompt": opened, **answers},
        {"prompt": opened, "chosen": f" {better}", "rejected": f" {worse}"},
    ]
    if len(prompt) == 1:
        rows += [
            {"prompt": prompt[0][1], "chosen": better, "rejected": worse},
            {"prompt": prompt[0][1], **whole},
            {"prompt": prompt[0][1], **answers},
        ]
    for row in rows:
        value = json.loads(json.dumps({**{f"id {key}": one for key, one in extra.items()}, **row}))
        assert parse_pair(value, "row") == (chosen, worse, "")
        assert parse_row(value, "row").messages == chosen


@given(prompt=PROMPTS, better=WORDS, worse=WORDS, other=WORDS)
def test_a_prompt_that_the_answers_repeat_otherwise_is_refused(
    prompt: Any, better: str, worse: str, other: str
) -> None:
    """Never learned twice, nor in a mixture."""
    if better == worse or prompt == (("user", other),):
        return
    repeated = [{"role": "user", "content": other}]
    row = {
        "prompt": turns_json(prompt),
        "chosen": [*repeated, {"role": "assistant", "content": better}],
        "rejected": [*repeated, {"role": "assistant", "content": worse}],
    }
    with pytest.raises(InvalidArgument, match=r"repeat the prompt's turns word for word"):
        parse_pair(row, "row")


def test_a_label_beside_a_text_is_one_of_its_labels() -> None:
    assert parse_row({"text": "good film", "label": 1}, "row").text == "good film"


def test_a_system_message_before_a_repeated_prompt_stays() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    row = {
        "prompt": "p",
        "chosen": [*turns, {"role": "assistant", "content": "a"}],
        "rejected": [*turns, {"role": "assistant", "content": "b"}],
    }
    assert parse_pair(row, "row")[0] == (("system", "s"), ("user", "p"), ("assistant", "a"))
