"""Chats as ids and masks for a thread, by calls of the tokenizer stage on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from plinth.shared.answer_spans import answer_spans
from plinth.trainer.data.prompt_dataset import RenderPrompts
from plinth.trainer.data.tokenize import Messages, Render

# A conversation, and whether the answer's turn is open at its end.
Turn = tuple[Messages, bool]
# By the tokenizer stage, (tokenizer, turns) to (ids of each, ids that end a turn).
ApplyTemplates = Callable[[str, Sequence[Turn]], Awaitable[tuple[list[list[int]], list[int]]]]
_CALL_TURNS = 512
_CALL_CHARACTERS = 1 << 20  # at most four bytes each: below what the stage takes


class Renderer:
    """Rendering for a thread, by calls that run on `loop`: each holds as many turns as one may."""

    def __init__(self, apply: ApplyTemplates, loop: asyncio.AbstractEventLoop) -> None:
        self._apply, self._loop = apply, loop
        self._stop_ids: dict[str, tuple[int, ...]] = {}

    def chats(self, model: str) -> Render:
        """Conversations to (ids, mask of the assistant's answers), by the tokenizer `model`."""

        def render(batch: Sequence[Messages]) -> list[tuple[list[int], list[int]]]:
            # Both answers of a pair have one prompt: it is rendered once.
            ids = self._ids(model, [turn for messages in batch for turn in _turns(messages)])
            return [_masked(messages, ids, self.stop_ids(model)) for messages in batch]

        return render

    def stop_ids(self, model: str) -> tuple[int, ...]:
        """Ids that end an answer of `model`, which was rendered by before; its template's first."""
        return self._stop_ids[model]

    def prompts(self, model: str) -> RenderPrompts:
        """Conversations to ids with the assistant's turn open."""

        def render(batch: Sequence[Messages]) -> list[list[int]]:
            ids = self._ids(model, [(messages, True) for messages in batch])
            return [ids[messages, True] for messages in batch]

        return render

    def _ids(self, model: str, turns: Sequence[Turn]) -> dict[Turn, list[int]]:
        async def all_calls() -> dict[Turn, list[int]]:
            ids: dict[Turn, list[int]] = {}
            for call in _calls(list(dict.fromkeys(turns))):
                rendered, stop_ids = await self._apply(model, call)
                ids.update(zip(call, rendered, strict=True))
                self._stop_ids[model] = tuple(stop_ids)
            return ids

        return asyncio.run_coroutine_threadsafe(all_calls(), self._loop).result()


def _turns(messages: Messages) -> Iterator[Turn]:
    """The whole, and for each answer: its prompt, and all up to its end."""
    yield messages, False
    for number, (role, _) in enumerate(messages):
        if role == "assistant":
            yield messages[:number], True
            yield messages[: number + 1], False


def _masked(
    messages: Messages, ids: dict[Turn, list[int]], stop_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    turns = [
        (ids[messages[:number], True], ids[messages[: number + 1], False])
        for number, (role, _) in enumerate(messages)
        if role == "assistant"
    ]
    kept, spans = answer_spans(ids[messages, False], turns, stop_ids)
    mask = [0] * len(kept)
    for span in spans:
        mask[span.begin : span.end] = [1] * (span.end - span.begin)
    return kept, mask


def _calls(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    call: list[Turn] = []
    characters = 0
    for turn in turns:
        size = sum(len(content) for _, content in turn[0])
        if call and (len(call) == _CALL_TURNS or characters + size > _CALL_CHARACTERS):
            yield call
            call, characters = [], 0
        call.append(turn)
        characters += size
    if call:
        yield call
