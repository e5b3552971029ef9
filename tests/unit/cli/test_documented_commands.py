"""Every `plinth …` that a document or a message shows is a command of that name, with those
options, and every PLINTH_… a setting."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from plinth.cli import main
from plinth.shared.settings import OTHER_VARIABLES, Settings
from plinth.shared.sources import keys_of

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
    """Or the way of writing them has changed. Three pages show none."""
    assert sum(bool(commands(document)) for document in DOCUMENTS) >= len(DOCUMENTS) - 3


def messages() -> Iterator[tuple[Path, str]]:
    """Texts in the code; what an f-string fills in stands as X."""
    for path in sorted((ROOT / "services" / "plinth").rglob("*.py")):
        if path.parent.name == "v1":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        parts = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield (
                    path,
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "X"
                        for part in node.values
                    ),
                )
            elif isinstance(node, ast.Constant) and id(node) not in parts:
                yield path, str(node.value)


def test_commands_that_messages_advise_exist() -> None:
    advised = [
        (path, words)
        for path, text in messages()
        for words in re.findall(r"`plinth ([a-z][^`]*)`", text)
    ]
    assert len(advised) > 30
    for path, words in advised:
        try:
            check([word for word in shlex.split(words) if word != "…"])
        except AssertionError as error:
            raise AssertionError(f"{path}: `plinth {words}`") from error


def test_variables_that_messages_advise_are_settings() -> None:
    known = {f"PLINTH_{key.upper().replace('.', '__')}" for key in keys_of(Settings)}
    known |= {name.rpartition("__")[0] for name in known if "__" in name} | set(OTHER_VARIABLES)
    advised = {
        (path, name.rstrip("_"))
        for path, text in messages()
        for name in re.findall(r"PLINTH_[A-Z][A-Z_]+", text)
    }
    assert len(advised) > 5
    unknown = {(path.name, name) for path, name in advised if name not in known}
    # A name that is filled in, and one that only the C++ compiler sees.
    assert unknown <= {("ports.py", "PLINTH_GATEWAY__X"), ("build.py", "PLINTH_STAMP")}


@pytest.mark.parametrize("wrong", [["backups", "x"], ["backup", "x", "--pause"], ["keys", "make"]])
def test_what_does_not_exist_is_found_out(wrong: list[str]) -> None:
    with pytest.raises(AssertionError):
        check(wrong)
