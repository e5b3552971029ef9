"""A conversation as REST brings it, and the checks that REST and gRPC share.

Written by hand rather than as a schema: it ends at the first mistake, of which a long body can hold
as many as it has bytes, and it says what is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plinth.gateway import limits
from plinth.gateway.openai.field_rules import Ignored, sift, unsupported
from plinth.gateway.openai.known_fields import CONTENT_PART, MESSAGE
from plinth.shared.errors import InvalidArgument
from plinth.v1 import chat_pb2


def check_messages(messages: Sequence[chat_pb2.ChatMessage]) -> None:
    """InvalidArgument for a conversation that no API takes."""
    limits.check_messages(len(messages))
    for index, message in enumerate(messages):
        limits.check_role(message.role, f"messages.{index}.role")
        limits.check_text(message.content, f"messages.{index}.content")


def normalised(messages: Sequence[chat_pb2.ChatMessage]) -> list[chat_pb2.ChatMessage]:
    """Checked messages as templates know them: "developer" is OpenAI's newer word for "system"."""
    return [
        chat_pb2.ChatMessage(role="system", content=message.content)
        if message.role == "developer"
        else message
        for message in messages
    ]


def read_messages(given: Any, ignored: Ignored) -> list[chat_pb2.ChatMessage]:
    """The conversation of a JSON body. InvalidArgument for the first mistake in it."""
    if not isinstance(given, list):
        raise _wrong("messages", "a list of messages is needed")
    limits.check_messages(len(given))
    return [_message(one, f"messages.{index}", ignored) for index, one in enumerate(given)]


def _message(given: Any, path: str, ignored: Ignored) -> chat_pb2.ChatMessage:
    if not isinstance(given, dict):
        raise _wrong(path, 'an object with "role" and "content" is needed')
    known = sift(given, ("role", "content"), MESSAGE, ignored, name="messages.", path=f"{path}.")
    for name in ("role", "content"):
        if name not in known and not (name == "content" and known.get("role") == "assistant"):
            raise InvalidArgument(
                f"{path}.{name}: is missing", reason="MISSING_PARAMETER", field=f"{path}.{name}"
            )
    role, content = known["role"], known.get("content")
    if not isinstance(role, str):
        raise _wrong(f"{path}.role", f"one of {', '.join(limits.ROLES)} is needed")
    limits.check_role(role, f"{path}.role")
    if content is None and role == "assistant":
        content = ""  # of an answer that was empty, or that called a tool
    return chat_pb2.ChatMessage(role=role, content=_content(content, f"{path}.content", ignored))


def _content(given: Any, path: str, ignored: Ignored) -> str:
    if isinstance(given, str):
        limits.check_text(given, path)
        return given
    if not isinstance(given, list):
        raise _wrong(path, "text or a list of parts is needed")
    return "".join(_part(part, f"{path}.{index}", ignored) for index, part in enumerate(given))


def _part(given: Any, path: str, ignored: Ignored) -> str:
    if not isinstance(given, dict):
        raise _wrong(path, 'an object {"type": "text", "text": …} is needed')
    kind = given.get("type")
    if kind != "text":
        if isinstance(kind, str):
            raise unsupported(f"{path}.type", f"{kind[:64]!r}; only 'text' is supported")
        raise _wrong(f"{path}.type", "'text' is needed")
    known = sift(
        given,
        ("type", "text"),
        CONTENT_PART,
        ignored,
        name="messages.content.",
        path=f"{path}.",
    )
    text = known.get("text")
    if not isinstance(text, str):
        raise _wrong(f"{path}.text", "text is needed")
    limits.check_text(text, f"{path}.text")
    return text


def _wrong(path: str, right: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {right}", reason="INVALID_VALUE", field=path)
