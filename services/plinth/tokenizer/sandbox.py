"""Chat templates, run where they can do no harm: `python -m plinth.tokenizer.sandbox`.

A template comes with a checkpoint, so it is a stranger's program. Jinja's sandbox keeps it from
Python's objects; this process keeps it from the machine: its memory is capped by the kernel, its
owner ends it when it takes too long, and it ends by itself when its owner is gone. One JSON object
a line in, one out.

Each conversation is rendered twice: as it is, and with the special tokens that the template's own
literals and variables spell written as stand-ins, one character each that no message holds. What
is a stand-in in the second text was written by the template, whatever it does to its messages.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes

from plinth.shared.chat_template import environment
from plinth.shared.errors import plain

MEMORY_BYTES = 512 * 2**20
# Above any time that the owner allows.
LAST_RESORT_SECONDS = 30


# Methods and filters that look for their (first) argument in a text, and never write it.
_CUTS = {"split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix"}
_LOOKS = {"startswith", "endswith", "find", "rfind", "index", "count"}
_SEARCHES = _CUTS | _LOOKS | {"strip", "lstrip", "rstrip", "replace"}


class _StandIns:
    """Special tokens in text, written as their stand-ins, the longer first."""

    def __init__(self, stand_ins: tuple[tuple[str, str], ...]) -> None:
        self._of = dict(stand_ins)
        longest_first = sorted(self._of, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def write(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._of[match[0]], text)

    def rewrite(self, template: nodes.Template) -> None:
        """Every literal of the template but those that are only looked for, in messages."""
        sought = {id(node) for node in _sought(template)}
        for data in template.find_all(nodes.TemplateData):
            data.data = self.write(data.data)
        for literal in template.find_all(nodes.Const):
            if isinstance(literal.value, str) and id(literal) not in sought:
                literal.value = self.write(literal.value)


def _sought(template: nodes.Template) -> Iterator[nodes.Node]:
    """Operands of comparisons, keys, and what a search is for."""
    for comparison in template.find_all(nodes.Compare):
        yield from (comparison.expr, *(operand.expr for operand in comparison.ops))
    for item in template.find_all(nodes.Getitem):
        yield item.arg
    for test in template.find_all(nodes.Test):
        yield from test.args or ()
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            yield from call.args[:1]
    for applied in template.find_all(nodes.Filter):
        if applied.name in _SEARCHES:
            yield from applied.args[:1]


@lru_cache(maxsize=64)
def _compiled(template: str, stand_ins: tuple[tuple[str, str], ...] = ()) -> jinja2.Template:
    jinja = environment()
    if not stand_ins:
        return jinja.from_string(template)
    tree = jinja.parse(template)
    _StandIns(stand_ins).rewrite(tree)
    code = jinja.compile(tree)
    return jinja.template_class.from_code(jinja, code, jinja.make_globals(None), None)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, str],
    max_chars: int,
    stand_ins: tuple[tuple[str, str], ...] = (),
) -> str:
    """The prompt as text; `stand_ins`: (special token, the character to write in its place).

    Raises jinja2.TemplateError, or whatever the template provokes.
    """
    parts: list[str] = []
    length = 0
    written = _StandIns(stand_ins)
    stream = _compiled(template, stand_ins).generate(
        **{name: written.write(value) for name, value in variables.items()},
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
    )
    for part in stream:
        length += len(part)
        if length > max_chars:
            raise jinja2.TemplateError(f"the template made more than {max_chars:,} characters")
        parts.append(part)
    return "".join(parts)


def rendered(
    template: str,
    *,
    variables: Mapping[str, str],
    stand_ins: tuple[tuple[str, str], ...],
    conversation: Mapping[str, Any],
) -> dict[str, str | None]:
    """{"text": as it is, "marked": with stand-ins; None where only that fails}."""
    text = render(template, variables=variables, **conversation)
    if not stand_ins:
        return {"text": text, "marked": text}
    try:
        marked = render(template, variables=variables, stand_ins=stand_ins, **conversation)
    except Exception:  # noqa: BLE001 - a stranger's program: it may raise anything
        marked = None
    return {"text": text, "marked": marked}


def _answer(line: str) -> dict[str, Any]:
    """{"texts": one `rendered` per conversation}, or {"error": why the first that failed did,
    "conversation": its number}."""
    request = json.loads(line)
    stand_ins = tuple((token, character) for token, character in request["stand_ins"])
    texts: list[dict[str, str | None]] = []
    try:
        for conversation in request["conversations"]:
            texts.append(
                rendered(
                    request["template"],
                    variables=request["variables"],
                    stand_ins=stand_ins,
                    conversation=conversation,
                )
            )
        return {"texts": texts}
    except MemoryError:
        why = f"the template needs more than {MEMORY_BYTES >> 20} MiB"
    except RecursionError:
        why = "the template nests too deeply"
    # The template is a program: it may raise anything, and none of it ends this process.
    except Exception as error:  # noqa: BLE001
        why = plain(error) or type(error).__name__
    return {"error": why, "conversation": len(texts)}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Ctrl-C in a terminal reaches the whole group; the owner decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        # An owner that was killed ends nobody: the kernel then does.
        signal.alarm(LAST_RESORT_SECONDS)
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()
        signal.alarm(0)


if __name__ == "__main__":
    main()
