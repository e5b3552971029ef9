"""What one JSON line may say: a text, a conversation, a preference pair.

Each shape is recognised by its keys and by what they hold, exactly; a row that could be two things,
or none, is refused with what was seen. `docs/data.md` lists the shapes with an example each, and a
test reads the examples. What else a row holds (ids, scores, labels) is left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import (
    PAGE,
    Messages,
    hh_turns,
    names_hh_turns,
    parse_messages,
    parse_optional,
    parse_string,
    parse_turns,
)

# Keys that say what a row is. One of these beside another shape's makes a row ambiguous.
_TELLING = ("text", "messages", "prompt", "completion", "chosen", "rejected")
_SHAPES = (
    ({"text"}, "text"),
    ({"messages"}, "messages"),
    ({"messages", "prompt"}, "messages"),
    ({"prompt", "completion"}, "completion"),
    ({"chosen", "rejected"}, "pair"),
    ({"chosen", "rejected", "prompt"}, "pair"),
    ({"chosen", "rejected", "messages"}, "pair"),
    ({"chosen", "rejected", "prompt", "messages"}, "pair"),
)
# What to do with a file that is one JSON array.
JSON_ARRAY = "Of a file that holds a list, `jq -c '.[]' FILE.json > FILE.jsonl` makes rows"
_READ = "'text', 'messages', 'prompt' with 'completion', and 'chosen' with 'rejected'"
# Shapes of others, by their keys, and what to do about them.
_HINTS = (
    ({"conversations"}, "ShareGPT's 'conversations' are 'messages' with 'role' and 'content' here"),
    ({"instruction", "output"}, "of Alpaca's rows make 'prompt' (instruction, input) and "
     "'completion' (output)"),
    ({"completions"}, "of UltraFeedback's own rows take the binarized ones"),
    ({"prompt", "completion", "label"}, "answers that are labelled one by one (TRL's unpaired "
     "preferences) are not learned from; make pairs of them"),
    ({"prompt", "responses"}, "these are tasks to judge: `plinth preferences tasks --add`"),
    ({"prompt", "answer", "reward"}, "these are samples: a step `data` takes them by `samples`"),
    ({"prompt"}, "prompts alone are for a step `prompts`"),
)  # fmt: skip


def why_no_json(error: ValueError | RecursionError) -> str:
    """What is wrong with a line that `json.loads` refused, and at which of its characters. Python
    counts lines within what it was given, which here is one line of a file."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


@dataclass(frozen=True)
class Row:
    """A text; or messages, and with `rejected` the pair whose preferred answer ends them. `source`
    says by whom."""

    text: str = ""
    messages: Messages = ()
    rejected: str | None = None
    source: str = ""


def parse_row(value: Any, where: str) -> Row:
    """InvalidArgument for what is none of the shapes, with what was seen."""
    match _shape(value, where):
        case "text":
            return Row(text=parse_string(value["text"], where, "text"))
        case "messages":
            return Row(messages=_chat(value, where))
        case "completion":
            return Row(messages=_completed(value, where))
    messages, rejected, source = parse_pair(value, where)
    return Row(messages=messages, rejected=rejected, source=source)


def _shape(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        array = f". {JSON_ARRAY}" if isinstance(value, list) else ""
        raise InvalidArgument(
            f"{where}: need an object with one of {_READ}, not {type(value).__name__}; see "
            f"{PAGE}{array}"
        )
    telling = {key for key in _TELLING if value.get(key) is not None}
    labelled = "completion" in telling and value.get("label") is not None
    for keys, shape in _SHAPES:
        if telling == keys and not labelled:
            return shape
    seen = ", ".join(repr(str(key)[:40]) for key in list(value)[:12]) or "no keys at all"
    hint = next((f"; {hint}" for keys, hint in _HINTS if telling <= keys <= value.keys()), "")
    raise InvalidArgument(
        f"{where}: a row with {seen} is none of the shapes that are read, one of {_READ}{hint}; "
        f"see {PAGE}"
    )


def _chat(value: dict[str, Any], where: str) -> Messages:
    """'messages'; a 'prompt' beside them repeats how they begin (UltraChat)."""
    messages = parse_messages(value["messages"], where)
    if value.get("prompt") is not None:
        prompt = _prompt(value["prompt"], where)
        spoken = tuple(turn for turn in messages if turn[0] != "system")
        if prompt not in (messages[: len(prompt)], spoken[: len(prompt)]):
            raise InvalidArgument(
                f"{where}: 'prompt' is not how 'messages' begin, so which of them is meant can't "
                f"be told; take one out. See {PAGE}"
            )
    return messages


def _completed(value: dict[str, Any], where: str) -> Messages:
    """TRL's prompt and completion: both texts, or both turns."""
    prompt, said = _prompt(value["prompt"], where), _side(value, "completion", where)
    messages = (*prompt, *_answer(prompt, said, "completion", where))
    if not any(role == "assistant" and content for role, content in messages[len(prompt) :]):
        raise InvalidArgument(f"{where}: 'completion' has nothing that the assistant says")
    return messages


def parse_pair(value: dict[str, Any], where: str) -> tuple[Messages, str, str]:
    """(messages that end with the preferred answer, the other answer, who says so)."""
    if (shape := _shape(value, where)) != "pair":
        raise InvalidArgument(
            f"{where}: need 'chosen' with 'rejected', and this row is of {shape!r}; see {PAGE}"
        )
    sides = {name: _side(value, name, where) for name in ("chosen", "rejected")}
    if value.get("prompt") is not None:
        prompt = _prompt(value["prompt"], where)
        if isinstance(value["prompt"], str) and names_hh_turns(value["prompt"]):
            # HH's texts have a space before what is said; its dialogues are read without.
            sides = {n: tuple((r, c.strip()) for r, c in said) for n, said in sides.items()}
        sides = {name: _whole(prompt, said, name, where) for name, said in sides.items()}
    chosen, rejected = sides["chosen"], sides["rejected"]
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise InvalidArgument(
            f"{where}: 'chosen' and 'rejected' must answer one prompt: give it as 'prompt', or "
            f"let both begin with the same turns; here they have {len(chosen)} and "
            f"{len(rejected)}. See {PAGE}"
        )
    for name, turns in sides.items():
        if turns[-1][0] != "assistant":
            raise InvalidArgument(f"{where}: {name!r} must end with an answer of the assistant")
        if not turns[-1][1].strip():
            raise InvalidArgument(f"{where}: {name!r} is empty; it must end with an answer")
    if chosen[-1] == rejected[-1]:
        raise InvalidArgument(f"{where}: 'chosen' and 'rejected' are the same answer")
    # UltraFeedback has the preferred conversation once more, as 'messages'.
    told = value.get("messages")
    if told is not None and parse_turns(told, where, "messages") != chosen:
        raise InvalidArgument(
            f"{where}: 'messages' beside a pair must be the chosen conversation; these are others, "
            f"so whether the row is a chat or a pair can't be told. See {PAGE}"
        )
    return chosen, rejected[-1][1], parse_optional(value, where, "source")


def _whole(prompt: Messages, said: Messages, name: str, where: str) -> Messages:
    """The prompt with an answer; or the turns as they are, where they repeat the prompt behind a
    system message."""
    if said[0][0] == "system" and said[1 : len(prompt) + 1] == prompt:
        return said
    return (*prompt, *_answer(prompt, said, name, where))


def _answer(prompt: Messages, said: Messages, name: str, where: str) -> Messages:
    """What comes after the prompt, which `said` may repeat (UltraFeedback, HH)."""
    rest = said[len(prompt) :] if said[: len(prompt)] == prompt else said
    if not rest or rest[0][0] != "assistant":
        began = f"a turn of the {rest[0][0]}" if rest else "nothing"
        raise InvalidArgument(
            f"{where}: after 'prompt' {name!r} must begin with the assistant's answer, or repeat "
            f"the prompt's turns word for word; it has {began}: {rest[0][1][:40] if rest else ''!r}"
            f". See {PAGE}"
        )
    return rest


def _prompt(value: Any, where: str) -> Messages:
    if not isinstance(value, str):
        turns = parse_turns(value, where, "prompt")
        if turns[-1][0] == "assistant":
            raise InvalidArgument(
                f"{where}: 'prompt' ends with a turn of the assistant, so there is nothing to "
                f"answer; see {PAGE}"
            )
        return turns
    text = parse_string(value, where, "prompt")
    if not names_hh_turns(text):
        return (("user", text),)
    dialogue = hh_turns(text)
    if dialogue is None or len(dialogue) < 2 or dialogue[-1] != ("assistant", ""):
        raise _hh_inside("prompt", "that ends with '\\n\\nAssistant:'", where)
    return dialogue[:-1]


def _side(value: dict[str, Any], name: str, where: str) -> Messages:
    """An answer alone, or a whole conversation that ends with one."""
    given = value[name]
    if not isinstance(given, str):
        return parse_turns(given, where, name)
    text = parse_string(given, where, name)
    if not names_hh_turns(text):
        return (("assistant", text),)
    if (turns := hh_turns(text)) is None:
        raise _hh_inside(name, "from its beginning on", where)
    return turns


def _hh_inside(name: str, whole: str, where: str) -> InvalidArgument:
    return InvalidArgument(
        f"{where}: {name!r} holds '\\n\\nHuman:' or '\\n\\nAssistant:', and is no dialogue in HH's "
        f"shape {whole}; if these words are the text, give it as a list of messages. See {PAGE}"
    )
