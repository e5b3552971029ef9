"""Texts and conversations in JSON, and Anthropic HH's text of a conversation.

Every error names the place and what would be right. `rows.py` says which rows hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from plinth.shared.errors import InvalidArgument

PAGE = "docs/data.md"  # every shape of row, with examples
# What is not UTF-8 has an encoding that only its owner knows; `iconv` does not guess it.
TO_UTF8 = "convert it, as Latin-1 by: iconv -f latin1 -t utf-8 FILE > NEW"
FROM_UTF16 = "convert it, if it is UTF-16 by: iconv -f utf-16 -t utf-8 FILE > NEW"
ROLES = ("system", "user", "assistant")
Messages = tuple[tuple[str, str], ...]
# Of a message, what would be learned or left out by itself; nothing here does either.
_UNREAD = ("tool_calls", "function_call", "weight", "reasoning_content", "thinking", "prefix")
_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_string(value: Any, where: str, name: str) -> str:
    """`value` if it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {name!r} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as wrong:
        raise InvalidArgument(
            f"{where}: {name!r} holds a lone surrogate at character {wrong.start}; "
            "write the character itself, or remove it"
        ) from wrong
    return value


def parse_optional(row: Mapping[str, Any], where: str, name: str) -> str:
    """The text that a row has by that key; empty where it has none or null."""
    value = row.get(name)
    return "" if value is None else parse_string(value, where, name)


def parse_flag(row: Mapping[str, Any], where: str, name: str) -> bool:
    """What a row says by that key; false where it says nothing or null."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidArgument(
            f"{where}: {name!r} must be true or false, not {type(value).__name__}"
        )
    return value is True


def parse_messages(value: Any, where: str) -> Messages:
    """A conversation in which the assistant says something."""
    turns = parse_turns(value, where, "messages")
    if not any(role == "assistant" and content for role, content in turns):
        raise InvalidArgument(f"{where}: no message of the assistant, so nothing to learn from")
    return turns


def parse_turns(value: Any, where: str, name: str) -> Messages:
    """Turns by whomever: [{"role": …, "content": …}, …]."""
    if not isinstance(value, list) or not value:
        raise InvalidArgument(f"{where}: {name!r} must be a list that is not empty")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            seen = f"{turn.get('role')!r:.40}" if isinstance(turn, dict) else type(turn).__name__
            raise InvalidArgument(
                f"{where}: in {name!r} each message needs a 'role' of {', '.join(ROLES)}, and this "
                f"one has {seen}; see {PAGE}"
            )
        if unread := [key for key in _UNREAD if turn.get(key) is not None]:
            raise InvalidArgument(
                f"{where}: a message in {name!r} has {unread[0]!r}, which is not read, and to "
                f"leave it out would change what is learned; write it into 'content', or take it "
                f"out. See {PAGE}"
            )
        turns.append((str(turn["role"]), parse_string(turn.get("content"), where, "content")))
    return tuple(turns)


def turns_json(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages as TRL and everybody else write them in JSON."""
    return [{"role": role, "content": content} for role, content in turns]


def hh_turns(text: str) -> Messages | None:
    """The turns of a dialogue in HH's shape, which begins with one; None for another text. An
    empty last turn is what an open one is written as ("\\n\\nAssistant:")."""
    parts = _HH_TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple((_HH_ROLES[who], content.strip()) for who, content in turns)


def names_hh_turns(text: str) -> bool:
    """Whether it holds what begins a turn in HH's shape."""
    return _HH_TURN.search(text) is not None


def hh_dialogue(turns: Messages, where: str) -> str:
    """Anthropic HH's text of a conversation. InvalidArgument where that shape can't hold it."""
    if any(role == "system" for role, _ in turns):
        raise InvalidArgument(f"{where}: HH's shape has no system message; use TRL's")
    names = {role: name for name, role in _HH_ROLES.items()}
    text = "".join(f"\n\n{names[role]}: {content}" for role, content in turns)
    if hh_turns(text) != tuple((role, content.strip()) for role, content in turns):
        raise InvalidArgument(
            f"{where}: a message that says 'Human:' or 'Assistant:' after a blank line can't be "
            "told from a turn in HH's shape; use TRL's"
        )
    return text
