"""Chat templates: where a tokenizer's files keep one, and the Jinja that they are written in.

Filters, globals and options are those of transformers, so that a template renders to the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plinth.shared.errors import InvalidArgument

TEMPLATE_FILE = "chat_template.jinja"


def chat_template(config: Mapping[str, Any], folder: Path) -> str | None:
    """The template, by transformers' order: the file beside, or what the configuration holds,
    text or the one named "default" of several. None: there is none. InvalidArgument: it is neither.
    """
    beside = folder / TEMPLATE_FILE
    if beside.is_file():
        return read_template(beside)
    template = config.get("chat_template")
    if isinstance(template, list):
        template = _by_name(template, folder).get("default")
    if template is not None and not isinstance(template, str):
        raise InvalidArgument(
            f"{folder / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}, "
            'must be text, or a list of {"name": …, "template": …}',
            field="chat_template",
        )
    return template


def read_template(path: Path) -> str:
    """A template's file. InvalidArgument: it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8 ({error})") from error


def syntax_error(template: str) -> str | None:
    """What is wrong with a template's syntax, and where. Runs nothing of it."""
    try:
        environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it nests too deeply"
    return None


def _by_name(templates: list[Any], folder: Path) -> dict[str, Any]:
    if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in templates):
        raise InvalidArgument(
            f"{folder / 'tokenizer_config.json'}: chat_template is a list, but not each entry has "
            "a name and a template",
            field="chat_template",
        )
    return {str(one["name"]): one["template"] for one in templates}


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body stays as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_as_it_is"), [], [], body)
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


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """Jinja's sandbox. It bounds neither memory nor time: only `parse` runs none of a template."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    made.globals["namespace"] = _Namespace
    return made
