"""Every `plinth …` that a document shows is a command of that name, with those options."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from plinth.cli import main

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# In a document an option may stand in words too: `plinth models serve NAME --shards N`.
SHELL = re.compile(r"(?:^|[\s`($])plinth ([a-z0-9][^`\n)]*)")
LIST = re.compile(r'\["plinth", [^\]]*\]')


def blocks(text: str) -> str:
    """Fenced blocks and code spans, lines continued by a backslash joined."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    return "\n".join([*fenced, *spans]).replace("\\\n", " ")


def commands(document: Path) -> list[list[str]]:
    found = []
    for line in blocks(document.read_text()).splitlines():
        for match in LIST.findall(line):
            found.append(json.loads(match)[1:])
        bare = LIST.sub("", line)
        # helm's release is called plinth too, and so are kubectl's namespaces and clusters.
        if match := re.search(r"(?:^|-- |\$\(|bin/)plinth ([a-z].*)", bare.strip()):
            words = re.sub(r"\s+#.*$", "", match[1]).split("  ")[0]
            found += [shlex.split(one) for one in words.rstrip(")").split(" | plinth ")]
    return found


def check(words: list[str]) -> None:
    """Resolves the command, and that each option is one of its."""
    command: Any = typer.main.get_command(main._typer)
    path = ["plinth"]
    while hasattr(command, "get_command"):
        if not words or words[0].startswith("-"):
            break
        name, *words = words
        for one in name.split("|"):
            found = command.get_command(None, one.strip())
            assert found is not None, f"{' '.join(path)} has no command {one!r}"
        command = found
        path.append(name)
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and len(option) > 1:
            assert option in options | {"--help"}, f"{' '.join(path)} has no option {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_exist(document: Path) -> None:
    for words in commands(document):
        check(words)


def test_commands_are_found() -> None:
    """Or the way of writing them has changed. docs/benchmarks.md shows none."""
    assert sum(bool(commands(document)) for document in DOCUMENTS) >= len(DOCUMENTS) - 1


@pytest.mark.parametrize("wrong", [["backups", "x"], ["backup", "x", "--pause"], ["keys", "make"]])
def test_what_does_not_exist_is_found_out(wrong: list[str]) -> None:
    with pytest.raises(AssertionError):
        check(wrong)
