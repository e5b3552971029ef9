"""Chats as ids and masks: few calls, each turn rendered once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from plinth.trainer.data.tokenize import Messages
from plinth.trainer.exchanges import Turn
from plinth.trainer.rendering import Renderer

END = "$"


def text_of(turn: Turn) -> str:
    messages, open_turn = turn
    said = "".join(f"<{role}>{content}{END}\n" for role, content in messages)
    return said + "<assistant>" * open_turn


def upto_the_answer(chat: Messages) -> str:
    return text_of((chat, False)).removesuffix("\n")


class Stage:
    """Renders to bytes, and remembers what was asked."""

    def __init__(self) -> None:
        self.calls: list[list[Turn]] = []

    async def apply(self, model: str, turns: Sequence[Turn]) -> tuple[list[list[int]], list[int]]:
        assert model == "m"
        self.calls.append(list(turns))
        return [list(text_of(turn).encode()) for turn in turns], [ord(END)]


async def rendered(stage: Stage, batch):
    render = Renderer(stage.apply, asyncio.get_running_loop()).chats("m")
    return await asyncio.to_thread(render, batch)


async def test_masks_are_of_the_assistants_answers_alone() -> None:
    stage = Stage()
    chat = (("user", "hi"), ("assistant", "yes"), ("user", "so"), ("assistant", "no"))
    ((ids, mask),) = await rendered(stage, [chat])
    assert bytes(ids).decode() == upto_the_answer(chat)
    said = bytes(id_ for id_, on in zip(ids, mask, strict=True) if on).decode()
    assert said == f"yes{END}no{END}"


async def test_a_pair_shares_its_prompt_and_calls_are_bounded() -> None:
    stage = Stage()
    prompt = (("user", "q" * 4000),)
    pairs = [(*prompt, ("assistant", f"{number} {word}")) for number in range(700) for word in "ab"]
    made = await rendered(stage, pairs)
    assert [bytes(ids).decode() for ids, _ in made] == [upto_the_answer(chat) for chat in pairs]
    asked = [turn for call in stage.calls for turn in call]
    assert len(asked) == len(set(asked)) == 1400 + 1
    assert max(map(len, stage.calls)) <= 512
    assert max(sum(len(c) for m, _ in call for _, c in m) for call in stage.calls) <= 1 << 20


async def test_prompts_leave_the_answers_turn_open() -> None:
    stage = Stage()
    render = Renderer(stage.apply, asyncio.get_running_loop()).prompts("m")
    batch = [(("user", "a"),), (("user", "b"),), (("user", "a"),)]
    made = await asyncio.to_thread(render, batch)
    assert [bytes(ids).decode() for ids in made] == [text_of((m, True)) for m in batch]
    assert sum(map(len, stage.calls)) == 2
