"""What one JSON line may say: texts, conversations, preference pairs.

A pair is read in each shape that is in use, and becomes (messages, rejected, source):

    {"prompt": "…", "chosen": "…", "rejected": "…"}               TRL, standard
    {"prompt": […], "chosen": […], "rejected": […]}               TRL, conversational
    {"chosen": […], "rejected": […]}                              TRL, the prompt implied
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}   Anthropic HH

Every error names the place and what would be right. What else a line of a pair holds (labels) is
left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from plinth.shared.errors import InvalidArgument

ROLES = ("system", "user", "assistant")
Messages = tuple[tuple[str, str], ...]
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
            raise InvalidArgument(f"{where}: each message needs a 'role' of {', '.join(ROLES)}")
        turns.append((str(turn["role"]), parse_string(turn.get("content"), where, "content")))
    return tuple(turns)


def parse_pair(value: dict[str, Any], where: str) -> tuple[Messages, str, str]:
    """(messages that end with the preferred answer, the other answer, who says so)."""
    prompt = value.get("prompt")
    sides = {name: _side(value.get(name), where, name) for name in ("chosen", "rejected")}
    if prompt is not None:
        before = (
            (("user", parse_string(prompt, where, "prompt")),)
            if isinstance(prompt, str)
            else parse_turns(prompt, where, "prompt")
        )
        sides = {name: (*before, *turns) for name, turns in sides.items()}
    chosen, rejected = sides["chosen"], sides["rejected"]
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise InvalidArgument(
            f"{where}: 'chosen' and 'rejected' must answer one prompt: give it as 'prompt', or "
            "let both begin with the same turns"
        )
    for name, turns in sides.items():
        if turns[-1][0] != "assistant" or not turns[-1][1].strip():
            raise InvalidArgument(f"{where}: {name!r} must end with an answer of the assistant")
    if chosen[-1] == rejected[-1]:
        raise InvalidArgument(f"{where}: 'chosen' and 'rejected' are the same answer")
    source = value.get("source", "")
    return chosen, rejected[-1][1], parse_string(source, where, "source")


def _side(value: Any, where: str, name: str) -> Messages:
    if not isinstance(value, str):
        return parse_turns(value, where, name)
    text = parse_string(value, where, name)
    parts = _HH_TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return (("assistant", text),)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple((_HH_ROLES[who], content.strip()) for who, content in turns)


def turns_json(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages as TRL and everybody else write them in JSON."""
    return [{"role": role, "content": content} for role, content in turns]


def hh_dialogue(turns: Messages, where: str) -> str:
    """Anthropic HH's text of a conversation. InvalidArgument where that shape can't hold it."""
    if any(role == "system" for role, _ in turns):
        raise InvalidArgument(f"{where}: HH's shape has no system message; use TRL's")
    names = {role: name for name, role in _HH_ROLES.items()}
    text = "".join(f"\n\n{names[role]}: {content}" for role, content in turns)
    stripped = tuple((role, content.strip()) for role, content in turns)
    if _side(text, where, "dialogue") != stripped:
        raise InvalidArgument(
            f"{where}: a message that says 'Human:' or 'Assistant:' after a blank line can't be "
            "told from a turn in HH's shape; use TRL's"
        )
    return text
