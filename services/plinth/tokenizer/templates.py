"""Conversations, checked, and rendered to text by a template in the process of `sandbox`, which is
replaced when it takes too long. Knows no tokens; `prompts` says what of a text is special.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.line_process import LineProcess
from plinth.tokenizer.codec import check_text

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 2048
# A template adds markers and a system prompt; it does not write books.
MAX_ADDED_CHARS = 256 * 1024
RENDER_SECONDS = 5.0
# Reasons: the template itself refuses or fails; it took too long, or its process was killed.
FAILED, ENDED = "CHAT_TEMPLATE", "CHAT_TEMPLATE_ENDED"
# Of an error's metadata: the number of the conversation that it is about, from 0, of those given.
CONVERSATION = "conversation"

Message = Mapping[str, str]


@dataclass(frozen=True)
class Conversation:
    """Messages with `role` and `content`; `open_turn`: the prompt ends where the answer begins."""

    messages: Sequence[Message]
    open_turn: bool


@dataclass(frozen=True)
class Rendered:
    """A template's text, and the same with stand-ins for the special tokens that the template
    itself spells; None where it fails with those."""

    text: str
    marked: str | None


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


class Renderer:
    """Owner of one sandbox process, started when first used. One rendering at a time."""

    def __init__(self, *, seconds: float = RENDER_SECONDS) -> None:
        self._process = LineProcess("plinth.tokenizer.sandbox", seconds=seconds)

    async def render(
        self,
        template: str,
        conversations: Sequence[Conversation],
        *,
        variables: Mapping[str, str],
        stand_ins: Sequence[tuple[str, str]] = (),
    ) -> list[Rendered]:
        """The prompts as texts, all or none. `stand_ins`: (special token, its character).
        InvalidArgument: the template refuses or fails (FAILED), or takes too long (ENDED)."""
        request = {
            "template": template,
            "variables": dict(variables),
            "stand_ins": [list(pair) for pair in stand_ins],
            "conversations": [
                {
                    "messages": list(one.messages),
                    "add_generation_prompt": one.open_turn,
                    "max_chars": sum(len(m["content"]) for m in one.messages) + MAX_ADDED_CHARS,
                }
                for one in conversations
            ],
        }
        answer = await self._process.ask(request)
        if "error" in answer:
            number = answer.get("conversation")
            raise InvalidArgument(
                f"the chat template: {answer['error'][:500]}",
                reason=ENDED if answer.get("ended") else FAILED,
                field="messages",
                metadata={} if number is None else {CONVERSATION: str(number)},
            )
        return [Rendered(one["text"], one["marked"]) for one in answer["texts"]]

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()


def need_template(template: str | None, model: str) -> str:
    """The template, or FailedPrecondition: a base model has no roles to speak in."""
    if template is None:
        raise FailedPrecondition(
            f"{model} has no chat template, so it can't be given messages; add one to the files of "
            "its tokenizer (chat_template.jinja) and import it again, or use completions, or a "
            "model tuned for chat",
            reason="NO_CHAT_TEMPLATE",
            field="model",
        )
    return template
