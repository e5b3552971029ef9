"""What a table shows can be copied from it, at any width and from a pipe."""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group
from rich.markup import escape
from rich.text import Text

import plinth.cli
import shown_runs
from plinth.cli.run_summary import summary
from plinth.cli.stack_table import platform_sections
from plinth.cli.tables import WholeTable, show
from plinth.v1 import artifacts_pb2

IDS = st.text("abcdefghijkl0123456789-.@:[]", min_size=1, max_size=60)
TEXTS = st.lists(st.text("abcdefgh[]/", min_size=1, max_size=40), min_size=1, max_size=12)


def printed(what: object, width: int, *, terminal: bool) -> str:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    show(console, what)  # type: ignore[arg-type]
    return out.getvalue()


@given(
    st.lists(st.tuples(IDS, TEXTS, IDS), min_size=1, max_size=4),
    st.integers(20, 200),
    st.booleans(),
)
def test_nothing_is_cut(rows: list[tuple[str, list[str], str]], width: int, terminal: bool) -> None:
    table = WholeTable("id", "about", "reference", texts=("about",))
    for first, words, last in rows:
        table.add_row(escape(first), Text(" ".join(words)), Text(last))
    said = printed(Group("a line", table), width, terminal=terminal)
    together = "".join(said.split())
    for first, words, last in rows:
        assert first in said
        assert last in said
        if not terminal:  # a row is a line
            line = next(one for one in said.splitlines() if one.startswith(first + " "))
            assert " ".join(words) in said
            assert line.count("\n") == 0
    if not terminal:
        assert len(said.splitlines()) == 2 + len(rows)
    assert len(together) >= sum(len(a) + sum(map(len, w)) + len(b) for a, w, b in rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028"])
@pytest.mark.parametrize("kind", [escape, Text])
def test_a_text_of_several_lines_is_one_line_in_a_pipe(end: str, kind: type) -> None:
    table = WholeTable("run", "error")
    table.add_row("r1", kind(f"first line{end}second [b]line"))
    table.add_row("r2", kind("none"))
    rows = printed(table, 20, terminal=False).splitlines()
    assert [row.split() for row in rows[1:]] == [
        ["r1", "first", "line", "second", "[b]line"],
        ["r2", "none"],
    ]
    # A person sees the lines as they are.
    assert len(printed(table, 80, terminal=True).splitlines()) == 4


LONG = "quickstart-with-a-long-name-1130-095959-ab12"
MODEL = "a-model-of-some-forty-characters-exactly@123"


@pytest.mark.parametrize("width", [40, 80])
def test_screens_keep_ids_and_references(width: int) -> None:
    found = {
        "models": [{"model": LONG, "artifact": MODEL, "ready": 1, "shards": 1, "state": "ready"}],
        "canaries": [],
        "queues": [
            {"name": LONG, "waiting": 1, "claimed": 2, "delayed": 3, "dead": 4},
        ],
        "runs": [{"run_id": LONG, "name": LONG, "state": "failed", "steps_done": 1, "steps": 2}],
        "errors": [{"where": LONG, "what": "it went wrong " * 9}],
        "unknown": {},
    }
    said = printed(Group(*platform_sections(found)), width, terminal=False)
    assert said.count(LONG) == 5
    assert MODEL in said


def test_a_summary_names_the_models_of_a_contest_whole() -> None:
    sides = {"pass_rate": 0.5, "pass_rate_low": 0.4, "pass_rate_high": 0.6}
    more = {"unlikely": 0.1, "logprob": -1.0}
    figures = {
        "sides": {"baseline": sides | more, "model": sides | more},
        "models": {"baseline": f"{LONG}@1", "model": MODEL},
        "shown": [],
    }
    step = shown_runs.step("verify", figures, name="check")
    screen = summary(shown_runs.run(step), lambda _: artifacts_pb2.Artifact())
    said = printed(screen, 60, terminal=False)
    assert f"{LONG}@1" in said
    assert MODEL in said


# Where else a table of rich's own is made, and why that may be cut.
OTHERS = {
    "run_view.py": "RunView lives on a terminal",
    "run_summary.py": "answers side by side share its width",
    "stack_table.py": "UpTable lives on a terminal",
    "k8s_view.py": "numbers of two revisions",
    "preferences.py": "folds every cell",
    "models.py": "measures itself",
    "tables.py": "here",
}


def test_commands_make_whole_tables() -> None:
    folder = Path(plinth.cli.__file__).parent
    made = set()
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Table":
                made.add(path.name)
    assert made <= OTHERS.keys()
