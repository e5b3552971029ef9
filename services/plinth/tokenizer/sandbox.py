"""Chat templates, run where they can do no harm: `python -m plinth.tokenizer.sandbox`.

A template comes with a checkpoint, so it is a stranger's program. Jinja's sandbox keeps it from
Python's objects; this process keeps it from the machine: its memory is capped by the kernel, its
owner ends it when it takes too long, and it ends by itself when its owner is gone. One JSON object
a line in, one out. Filters, globals and options are those of transformers, so that a template
renders to the same text.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 * 2**20
# Above any time that the owner allows.
LAST_RESORT_SECONDS = 30


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body stays as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Any) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = CallBlock(self.call_method("_as_it_is"), [], [], body)
        block.set_lineno(line)
        return block

    def _as_it_is(self, caller: Any) -> Any:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Refuses names with an underscore in front, the way into CPython's internals."""

    # Jinja's own signature: it lets a template say namespace(self=…).
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # local time, as transformers has it


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, str],
    max_chars: int,
) -> str:
    """The prompt as text. Raises jinja2.TemplateError, or whatever the template provokes."""
    parts: list[str] = []
    length = 0
    stream = _compiled(template).generate(
        **variables,
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


def _answer(line: str) -> dict[str, Any]:
    """{"texts": one per conversation}, or {"error": why the first that failed did}."""
    request = json.loads(line)
    template, variables = request["template"], request["variables"]
    try:
        return {
            "texts": [
                render(template, variables=variables, **conversation)
                for conversation in request["conversations"]
            ]
        }
    except MemoryError:
        return {"error": f"the template needs more than {MEMORY_BYTES >> 20} MiB"}
    except RecursionError:
        return {"error": "the template nests too deeply"}
    # The template is a program: it may raise anything, and none of it ends this process.
    except Exception as error:  # noqa: BLE001
        return {"error": str(error) or type(error).__name__}


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
