"""Conversations to prompts: which special tokens of a rendered text are the template's own.

A message never becomes a special token, by whatever path: spelled, joined with the template's text
or another message's, cut or replaced by the template, or through the tokenizer's normalizer. So it
is not looked for where messages stand (a template may do anything to them). Rather, a special token
counts only where it is proven that the template wrote it:

1. The template's literals and variables are rendered with stand-ins for the special tokens that
   they spell, characters that no message holds. A stand-in in the text is the template's.
2. Some templates write tokens in pieces ('<|' + role + '|>'). They are found by rendering the same
   conversation with every letter of the messages blanked, spaces and lengths kept: what is a
   special token there holds nothing of the messages. Where the two texts differ in blanks only,
   the tokens stand at the same places in the real one.
3. A template that writes tokens in pieces, and whose text depends on what the messages say, proves
   nothing of the kind. If its text has the special tokens that the blanked one has, no more and
   no fewer, and no message spells one by itself, they are taken for its own; else it is refused.

All other text is plain. A conversation whose special tokens are all the template's gives the ids
that transformers gives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from plinth.shared.errors import InvalidArgument
from plinth.tokenizer.codec import Codec, Prompt, Span, StandIns
from plinth.tokenizer.templates import CONVERSATION, Conversation, Rendered

# All or none; raises InvalidArgument where the template fails.
Render = Callable[[Sequence[Conversation], StandIns], Awaitable[list[Rendered]]]


@dataclass(frozen=True)
class _Found:
    """A rendered text, the special tokens that stand-ins prove, and all that it spells."""

    text: str
    proven: tuple[Span, ...]
    spelled: tuple[Span, ...]
    stood_in: bool  # by stand-ins; else nothing is proven yet

    @property
    def all_proven(self) -> bool:
        return _same(self.spelled, self.proven)


async def prompts(
    codec: Codec, conversations: Sequence[Conversation], render: Render
) -> list[Prompt]:
    """One for each conversation. Raises what `render` does, and InvalidArgument
    (SPECIAL_TOKEN_IN_CONTENT) as step 3 says."""
    stand_ins = codec.stand_ins(
        content for one in conversations for message in one.messages for content in message.values()
    )
    texts = await render(conversations, stand_ins)
    found = await asyncio.to_thread(lambda: [_found(codec, one, stand_ins) for one in texts])
    doubtful = [number for number, one in enumerate(found) if not one.all_proven]
    made = [Prompt(one.text, one.spelled) for one in found]
    if doubtful:
        blanks = [_blanked(conversations[number], stand_ins) for number in doubtful]
        blank_texts = await _one_by_one_at_worst(blanks, stand_ins, render)

        def settle() -> None:
            for number, blank in zip(doubtful, blank_texts, strict=True):
                try:
                    spans = _settled(codec, conversations[number], found[number], blank, stand_ins)
                except InvalidArgument as error:
                    error.metadata[CONVERSATION] = str(number)
                    raise
                made[number] = Prompt(found[number].text, spans)

        await asyncio.to_thread(settle)
    return made


async def _one_by_one_at_worst(
    blanks: Sequence[Conversation], stand_ins: StandIns, render: Render
) -> list[Rendered | None]:
    """Their texts, None where the template refuses one."""
    try:
        return [*await render(blanks, stand_ins)]
    except InvalidArgument:
        if len(blanks) == 1:
            return [None]
    return [(await _one_by_one_at_worst([one], stand_ins, render))[0] for one in blanks]


def _found(
    codec: Codec, rendered: Rendered, stand_ins: StandIns, stood_in: bool | None = None
) -> _Found:
    """`stood_in`: which of the two texts to read; by default the marked one where it says what the
    other does."""
    if rendered.marked is not None and stood_in is not False:
        text, proven = _without_stand_ins(rendered.marked, stand_ins)
        if stood_in or text == rendered.text:
            return _Found(text, proven, codec.special_spans(text), True)
    return _Found(rendered.text, (), codec.special_spans(rendered.text), False)


def _without_stand_ins(marked: str, stand_ins: StandIns) -> tuple[str, tuple[Span, ...]]:
    """The text with tokens for stand-ins, and where they stand."""
    parts: list[str] = []
    spans: list[Span] = []
    length = at = 0
    for match in stand_ins.pattern.finditer(marked):
        parts.append(marked[at : match.start()])
        length += match.start() - at
        at = match.end()
        token, id_ = stand_ins.tokens[match[0]]
        parts.append(token)
        spans.append(Span(length, length + len(token), id_))
        length += len(token)
    return "".join([*parts, marked[at:]]), tuple(spans)


def _blanked(conversation: Conversation, stand_ins: StandIns) -> Conversation:
    """The same shape without a word: characters that are no space become the blank."""
    return replace(
        conversation,
        messages=[
            {**m, "content": "".join(c if c.isspace() else stand_ins.blank for c in m["content"])}
            for m in conversation.messages
        ],
    )


def _settled(
    codec: Codec,
    conversation: Conversation,
    found: _Found,
    rendered: Rendered | None,
    stand_ins: StandIns,
) -> tuple[Span, ...]:
    """The template's special tokens in a text that spells more than stand-ins prove."""
    if rendered is None or (found.stood_in and rendered.marked is None):
        raise _refusal("and refuses the same conversation with other words")
    blank = _found(codec, rendered, stand_ins, found.stood_in)
    if blank.all_proven:
        return found.proven  # the template writes none in pieces
    theirs = blank.spelled
    in_pieces = [span for span in theirs if not _within(span, blank.proven)]
    # A space may be a message's, also in the blanked text.
    spaced = any(c.isspace() for s in in_pieces for c in codec.special_contents[s.id])
    if not spaced and _differ_in_blanks(found.text, blank.text, stand_ins.blank):
        return theirs
    same = [span.id for span in found.spelled] == [span.id for span in theirs]
    alone = (codec.special_spans(message["content"]) for message in conversation.messages)
    if spaced or not same or any(alone):
        raise _refusal("and takes messages apart")
    return found.spelled


def _refusal(what: str) -> InvalidArgument:
    return InvalidArgument(
        "the messages and this model's chat template spell a special token together; the "
        f"template writes special tokens in pieces {what}, so it can't be told whose it is; "
        "leave what looks like one out of the messages",
        reason="SPECIAL_TOKEN_IN_CONTENT",
        field="messages",
    )


def _differ_in_blanks(text: str, blanked: str, blank: str) -> bool:
    return len(text) == len(blanked) and all(
        b in (a, blank) for a, b in zip(text, blanked, strict=True)
    )


def _within(span: Span, proven: Sequence[Span]) -> bool:
    return any(_covers(span, one) for one in proven)


def _covers(found: Span, proven: Span) -> bool:
    # A token that takes the spaces beside it (`lstrip`) is longer where it is found.
    return found.id == proven.id and found.start <= proven.start and proven.end <= found.end


def _same(spelled: Sequence[Span], proven: Sequence[Span]) -> bool:
    return len(spelled) == len(proven) and all(map(_covers, spelled, proven))
