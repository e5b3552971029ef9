"""A set of prompts, each with the checks that an answer must pass: what samples are drawn for.

Two JSON-lines files, `train.jsonl` and `validation.jsonl`. A line:

    {"prompt": "…", "group": "brief", "checks": [{"kind": "max_words", "n": 20}]}

`group` names what kind of prompt it is, for the figures; `checks` are the reward stage's rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinth.shared.api.structs import struct_of
from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import PAGE, TO_UTF8, parse_string
from plinth.shared.rows import why_no_json
from plinth.shared.splits import prompt_key

MAX_PROMPTS, MAX_PROMPT_CHARS, MAX_CHECKS = 100_000, 100_000, 32


@dataclass(frozen=True)
class Prompt:
    """One question to a model. `checks`: rules as the reward stage reads them."""

    text: str
    group: str = ""
    checks: tuple[dict[str, Any], ...] = ()

    @property
    def checks_json(self) -> str:
        return json.dumps(list(self.checks), ensure_ascii=False) if self.checks else ""

    @property
    def key(self) -> bytes:
        """What it shares with those that are the same but for case and white space."""
        return prompt_key([("user", self.text)])

    def line(self) -> str:
        value = {"prompt": self.text, "group": self.group, "checks": list(self.checks)}
        return json.dumps(value, ensure_ascii=False)


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a file, in order. InvalidArgument names file and line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number > MAX_PROMPTS:
                raise InvalidArgument(f"{path}: more than {MAX_PROMPTS:,} prompts")
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"{where}: not UTF-8 ({error}); {TO_UTF8}") from error
            if line.strip():
                yield _parse(line, where)


def write_prompts(prompts: Iterable[Prompt], path: Path) -> int:
    """How many there were."""
    lines = [prompt.line() for prompt in prompts]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return len(lines)


def _parse(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: not JSON ({why_no_json(error)}); see {PAGE}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: must be an object with 'prompt'; see {PAGE}")
    text, group, checks = value.get("prompt"), value.get("group", ""), value.get("checks", [])
    if not isinstance(text, str) or not 0 < len(text.strip()) <= MAX_PROMPT_CHARS:
        raise InvalidArgument(
            f"{where}: 'prompt' must be a text of 1 to {MAX_PROMPT_CHARS:,} characters; see {PAGE}"
        )
    parse_string(text, where, "prompt")
    if not isinstance(group, str) or len(group) > 100:
        raise InvalidArgument(f"{where}: 'group' must be a text of at most 100 characters")
    parse_string(group, where, "group")
    if (
        not isinstance(checks, list)
        or len(checks) > MAX_CHECKS
        or not all(isinstance(check, dict) and "kind" in check for check in checks)
    ):
        raise InvalidArgument(
            f"{where}: 'checks' must be a list of at most {MAX_CHECKS} rules, each with a 'kind'"
        )
    parse_string(json.dumps(checks, ensure_ascii=False), where, "checks")
    for number, check in enumerate(checks):  # as the reward stage is told them
        struct_of(check, f"{where}: checks.{number}")
    return Prompt(text, group, tuple(checks))
