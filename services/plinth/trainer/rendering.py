"""Chats as ids and masks for a thread, by calls of the tokenizer stage on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from plinth.shared.answer_spans import Span, answer_spans
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.prompt_dataset import RenderPrompts
from plinth.trainer.data.tokenize import Messages, Render
from plinth.trainer.exchanges import LongChat, Turn, answer_turns

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
            long = [LongChat.of(messages) for messages in batch]
            made = [self._by_exchanges(model, chat) if chat else None for chat in long]
            others = [m for m, one in zip(batch, made, strict=True) if one is None]
            # Both answers of a pair have one prompt: it is rendered once.
            ids = self._ids(model, [turn for messages in others for turn in _turns(messages)])
            return [
                _masked(*(one or _spans(messages, ids, self.stop_ids(model))))
                for messages, one in zip(batch, made, strict=True)
            ]

        return render

    def _by_exchanges(self, model: str, chat: LongChat) -> tuple[Sequence[int], list[Span]] | None:
        """None: as the definition has it, one answer after another."""
        try:
            ids = self._ids(model, list(chat.turns()))
        except InvalidArgument:  # a template may refuse a part and take the whole
            return None
        return chat.spans(ids, self.stop_ids(model))

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
    for pair in answer_turns(messages):
        yield from pair


def _spans(
    messages: Messages, ids: dict[Turn, list[int]], stop_ids: Sequence[int]
) -> tuple[Sequence[int], list[Span]]:
    turns = [(ids[prompt], ids[upto]) for prompt, upto in answer_turns(messages)]
    return answer_spans(ids[messages, False], turns, stop_ids)


def _masked(kept: Sequence[int], spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    mask = [0] * len(kept)
    for span in spans:
        mask[span.begin : span.end] = [1] * (span.end - span.begin)
    return list(kept), mask


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
