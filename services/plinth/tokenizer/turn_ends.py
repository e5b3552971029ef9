"""Which ids end an assistant's turn, found in what a chat template writes after one.

A template is trained on as it renders: after the assistant's words comes what it writes there, be
it `<|im_end|>`, a newline before it, or a token of two pieces. The first special token after the
words ends the turn, whatever text stands between. Where the last turn of a conversation has none
behind it, the one that follows the same turn in a longer conversation does (GLM's templates begin
the next turn and end none). Knows no sandbox: whoever asks renders.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from plinth.shared.errors import InvalidArgument
from plinth.tokenizer.codec import Codec
from plinth.tokenizer.templates import ENDED, Conversation, Rendered

# Raises InvalidArgument where the template refuses.
Render = Callable[[Sequence[Conversation]], Awaitable[list[Rendered]]]

_ANSWER, _NEXT = "plinth probe", "plinth follows"
_TURNS = (
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _NEXT},
)


async def turn_ends(codec: Codec, render: Render) -> tuple[int, ...]:
    """Ids that end a turn of this template, and the tokenizer's end-of-sequence.

    A template that refuses the little conversations that are tried tells nothing: then only
    end-of-sequence ends an answer. Raises what `render` raises but for that: a sandbox that was
    ended on a busy machine says nothing about its template.
    """
    for turns in (_TURNS[:2], _TURNS):
        end = await _end_after_answer(codec, turns, render)
        if end is not None:
            return tuple(dict.fromkeys([end, *codec.eos_ids]))
    return codec.eos_ids


async def _end_after_answer(
    codec: Codec, turns: Sequence[dict[str, str]], render: Render
) -> int | None:
    """The first special token behind the answer, before the next message if there is one."""
    try:
        (rendered,) = await render([Conversation(turns, False)])
    except InvalidArgument as error:
        if error.reason == ENDED:
            raise
        return None
    text = rendered.text
    at = text.rfind(_ANSWER)
    if at < 0:
        return None
    begin = at + len(_ANSWER)
    following = text.find(_NEXT, begin)
    end = len(text) if following < 0 else following
    spans = codec.special_spans(text)
    return next((s.id for s in spans if s.start >= begin and s.end <= end), None)
