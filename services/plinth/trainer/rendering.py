"""Chats as ids and masks for a thread, by calls of the tokenizer stage on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from plinth.trainer.data.tokenize import Messages, Render, completion_mask

# The ids of a conversation, by the tokenizer stage: (tokenizer, messages, open the answer's turn).
ApplyTemplate = Callable[[str, Messages, bool], Any]  # returns an awaitable of list[int]


def chat_renderer(apply: ApplyTemplate, loop: asyncio.AbstractEventLoop, at_once: int = 16) -> (
    Callable[[str], Render]
):  # fmt: skip
    """Rendering for a thread, by calls that run on `loop`, `at_once` of them together."""

    async def one(model: str, messages: Messages) -> tuple[list[int], list[int]]:
        whole = await apply(model, messages, False)
        turns = []
        for number, (role, _) in enumerate(messages):
            if role == "assistant":
                prompt = await apply(model, messages[:number], True)
                last = number + 1 == len(messages)
                upto = whole if last else await apply(model, messages[: number + 1], False)
                turns.append((prompt, upto))
        return whole, completion_mask(whole, turns)

    async def many(model: str, batch: Sequence[Messages]) -> list[tuple[list[int], list[int]]]:
        gate = asyncio.Semaphore(at_once)

        async def gated(messages: Messages) -> tuple[list[int], list[int]]:
            async with gate:
                return await one(model, messages)

        return await asyncio.gather(*(gated(messages) for messages in batch))

    def for_model(model: str) -> Render:
        def render(batch: Sequence[Messages]) -> list[tuple[list[int], list[int]]]:
            return asyncio.run_coroutine_threadsafe(many(model, batch), loop).result()

        return render

    return for_model
