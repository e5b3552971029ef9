"""A conversation that the tokenizer refuses is told with its document's file and line, whichever of
its turns was refused and in whichever call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trainings
from plinth.shared.errors import FailedPrecondition, InvalidArgument, PlinthError, Unavailable
from plinth.shared.prompt_set import Prompt, write_prompts
from plinth.trainer.data.corpus import write_corpus
from plinth.trainer.data.documents import Document
from plinth.trainer.data.prompt_dataset import tokenize_prompts
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.rendering import Renderer, Turn

NAMES = {"tokenizer_ref": "t@1", "tokenizer_digest": "sha256:0"}


class Stage:
    """Renders to bytes; refuses the first turn of a call that says "bad", as the stage does."""

    def __init__(self, error: PlinthError | None = None) -> None:
        self.error = error

    async def apply(self, model: str, turns: Sequence[Turn]) -> tuple[list[list[int]], list[int]]:
        if self.error is not None:
            raise self.error
        made = []
        for number, (messages, open_turn) in enumerate(turns):
            text = "".join(f"<{role}>{content}\n" for role, content in messages)
            if "bad" in text:
                raise InvalidArgument("no bad words", metadata={"conversation": str(number)})
            made.append(list((text + "<assistant>" * open_turn).encode()))
        return made, [ord("\n")]


def chat(number: int, words: str = "fine", turns: int = 1) -> Document:
    said = [("user", f"{number}"), ("assistant", f"first {number}")] * turns
    return Document(messages=(*said[:-1], ("assistant", words)))


def told(folder: Path, documents: list[Document], stage: Stage) -> PlinthError:
    """What tokenising their corpus ends with."""
    tokenizer = trainings.tokenizer(folder / "tokenizer")
    write_corpus(iter(documents), folder / "corpus", source="here", validation_fraction=0.2)

    async def run() -> PlinthError:
        render = Renderer(stage.apply, asyncio.get_running_loop()).chats("m")
        with pytest.raises(PlinthError) as caught:
            await asyncio.to_thread(
                tokenize_corpus,
                folder / "corpus",
                tokenizer,
                folder / "out",
                render=render,
                **NAMES,
            )
        return caught.value

    return asyncio.run(run())


def line_of(error: PlinthError) -> str:
    path, number = error.message.split(": ")[0].rsplit(":", 1)
    return Path(path).read_text(encoding="utf-8").splitlines()[int(number) - 1]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_line_of_a_chat_or_a_pair(tmp_path_factory, data) -> None:
    count = data.draw(st.integers(3, 600), "documents")
    wrong = data.draw(st.integers(0, count - 1), "the wrong one")
    turns = data.draw(st.integers(1, 3), "turns")
    documents = [chat(number, turns=turns) for number in range(count)]
    pairs = data.draw(st.booleans(), "pairs")
    if pairs:
        documents = [Document(messages=d.messages, rejected="worse") for d in documents]
    where = data.draw(st.sampled_from(["rejected", "answer"] if pairs else ["answer"]))
    good = documents[wrong]
    documents[wrong] = (
        Document(messages=good.messages, rejected="bad")
        if where == "rejected"
        else Document(messages=(*good.messages[:-1], ("assistant", "bad")), rejected=good.rejected)
    )
    error = told(tmp_path_factory.mktemp("made"), documents, Stage())
    assert isinstance(error, InvalidArgument)
    assert line_of(error) == documents[wrong].to_json()
    assert f"begins user: '{wrong}'" in error.message


def test_what_is_of_no_conversation_is_told_as_it_is(tmp_path) -> None:
    documents = [chat(number) for number in range(20)]
    for number, error in enumerate(
        (FailedPrecondition("no chat template"), Unavailable("no tokenizer"))
    ):
        found = told(tmp_path / str(number), documents, Stage(error))
        assert type(found) is type(error)
        assert found.message == error.message


async def test_the_line_of_a_prompt(tmp_path) -> None:
    tokenizer = trainings.tokenizer(tmp_path / "tokenizer")
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_prompts([Prompt(f"{n}") for n in range(9)], prompts / "train.jsonl")
    write_prompts([Prompt("a"), Prompt("a bad one")], prompts / "validation.jsonl")
    render = Renderer(Stage().apply, asyncio.get_running_loop()).prompts("m")
    with pytest.raises(InvalidArgument) as caught:
        await asyncio.to_thread(
            tokenize_prompts, prompts, tokenizer, tmp_path / "out", render=render, **NAMES
        )
    assert caught.value.message.startswith(f"{prompts}/validation.jsonl:2: no bad words")
