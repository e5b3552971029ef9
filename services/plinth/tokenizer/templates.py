"""A conversation as a prompt: the template's own special tokens count, its users' do not.

Contents that spell a special token are marked before rendering, with characters that the
conversation does not hold; the rendered text is then cut at the marks. A conversation that spells
none is rendered untouched, and so gives exactly what transformers gives. The template itself runs
in the process of `sandbox`, which is replaced when it takes too long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.line_process import LineProcess
from plinth.tokenizer.codec import Piece, check_text

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 2048
# A template adds markers and a system prompt; it does not write books.
MAX_ADDED_CHARS = 256 * 1024
RENDER_SECONDS = 5.0

Message = Mapping[str, str]


def check_messages(messages: Sequence[Message], max_bytes: int) -> int:
    """Bytes of their contents; InvalidArgument naming the first that cannot be part of a
    conversation."""
    if not messages:
        raise InvalidArgument("a conversation needs at least one message", field="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidArgument(
            f"{len(messages)} messages; at most {MAX_MESSAGES} are taken", field="messages"
        )
    total = 0
    for i, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise InvalidArgument(
                f"role {message['role']!r} is unknown; {', '.join(ROLES)} are known",
                field=f"messages[{i}].role",
            )
        check_text(message["content"])
        total += len(message["content"].encode())
    if total > max_bytes:
        raise InvalidArgument(
            f"the messages hold {total:,} bytes; at most {max_bytes:,} are taken",
            reason="TEXT_TOO_LONG",
            field="messages",
        )
    return total


def mark(
    messages: Sequence[Message], special: re.Pattern[str]
) -> tuple[list[Message], tuple[str, str]]:
    """Messages with each spelled special token put between marks, and the two marks.

    The marks are noncharacters (U+FDD0 to U+FDEF) that no content holds.
    """
    used = set("".join(message["content"] for message in messages))
    free = [chr(c) for c in range(0xFDD0, 0xFDF0) if chr(c) not in used]
    if len(free) < 2:
        raise InvalidArgument("the messages hold every Unicode noncharacter", field="messages")
    start, end = free[:2]
    marked: list[Message] = [
        {**message, "content": special.sub(rf"{start}\g<0>{end}", message["content"])}
        for message in messages
    ]
    return marked, (start, end)


def pieces(rendered: str, marks: tuple[str, str]) -> list[Piece]:
    """The rendered text cut at the marks; what stands between two of them is not trusted.

    InvalidArgument when the template took a content apart so that a mark lost its partner: whose
    text stands where is then unknown.
    """
    start, end = marks
    parts = re.split(f"([{start}{end}])", rendered)
    if "".join(parts[1::2]) != (start + end) * (len(parts) // 4):
        raise InvalidArgument(
            "a message spells a special token, and this model's chat template takes messages "
            "apart; leave the token out",
            reason="SPECIAL_TOKEN_IN_CONTENT",
            field="messages",
        )
    # Parts are text, mark, text, mark, …: every other text stands between a pair.
    return [Piece(text, trusted=i % 2 == 0) for i, text in enumerate(parts[::2])]


class Renderer:
    """Owner of one sandbox process, started when first used. One rendering at a time."""

    def __init__(self, *, seconds: float = RENDER_SECONDS) -> None:
        self._process = LineProcess("plinth.tokenizer.sandbox", seconds=seconds)

    async def render(
        self,
        template: str,
        conversations: Sequence[tuple[Sequence[Message], bool]],
        *,
        variables: Mapping[str, str],
    ) -> list[str]:
        """The prompts as texts, all or none; a conversation is (messages, open the answer's turn).
        InvalidArgument: the template refuses, fails or takes too long."""
        request = {
            "template": template,
            "variables": dict(variables),
            "conversations": [
                {
                    "messages": list(messages),
                    "add_generation_prompt": open_turn,
                    "max_chars": sum(len(m["content"]) for m in messages) + MAX_ADDED_CHARS,
                }
                for messages, open_turn in conversations
            ],
        }
        answer = await self._process.ask(request)
        if "error" in answer:
            raise InvalidArgument(
                f"the chat template: {answer['error'][:500]}",
                reason="CHAT_TEMPLATE",
                field="messages",
            )
        texts: list[str] = answer["texts"]
        return texts

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()


def need_template(template: str | None, model: str) -> str:
    """The template, or FailedPrecondition: a base model has no roles to speak in."""
    if template is None:
        raise FailedPrecondition(
            f"{model} has no chat template; use completions, or a model tuned for chat",
            reason="NO_CHAT_TEMPLATE",
            field="model",
        )
    return template
