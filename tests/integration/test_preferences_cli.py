"""`plinth preferences` as a person runs it, against a running gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway_stages import plinth
from plinth.cli.judging import parse_verdict
from plinth.shared.errors import InvalidArgument
from preference_stages import PreferenceStack, running_preferences


@pytest.fixture
async def stack(
    tmp_path: Path, redis_server: str, redis_client: object
) -> AsyncIterator[PreferenceStack]:
    async with running_preferences(tmp_path, redis_server) as running:
        yield running


async def preferences(stack: PreferenceStack, *arguments: str, stdin: str = "") -> str:
    code, out, err = await plinth(stack.stack, "preferences", *arguments, stdin=stdin)
    assert code == 0, err
    return out + err


@pytest.fixture
async def with_tasks(stack: PreferenceStack, tmp_path: Path) -> PreferenceStack:
    path = tmp_path / "tasks.jsonl"
    lines = [
        {"task_id": f"t{i}", "prompt": f"Question {i}?", "responses": [f"yes {i}", f"no {i}"]}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "4 tasks are there" in await preferences(stack, "tasks", "--add", str(path))
    return stack


async def test_an_annotator_at_the_terminal(with_tasks: PreferenceStack, tmp_path: Path) -> None:
    typed = "Z\nA\nclear\n=\n\nx\n\nq\n"
    out = await preferences(with_tasks, "judge", "--annotator", "ann", stdin=typed)
    assert "3 judged" in out
    assert "'Z' is none of A, B" in out
    assert "Question 0?" in out
    assert "[A]" in out
    listed = await preferences(with_tasks, "tasks")
    assert "4 tasks: 1 open, 0 held; 3 judgements" in listed
    told = await preferences(with_tasks, "report")
    assert "3 judgements of 4 tasks" in told
    assert "ann" in told
    pairs = await preferences(with_tasks, "export")
    (line,) = (json.loads(line) for line in pairs.splitlines())
    assert line["reasons"] == ["clear"]
    assert {line["chosen"][0]["content"], line["rejected"][0]["content"]} == {"yes 0", "no 0"}

    path = tmp_path / "pairs.jsonl"
    await preferences(with_tasks, "export", str(path), "--shape", "hh")
    assert [one.name for one in tmp_path.glob(".pairs*")] == []  # noqa: ASYNC240
    for words in ("1 pairs imported, 0", "0 pairs imported, 1"):
        assert words in await preferences(with_tasks, "import", str(path), "-c", "other")


async def test_an_import_tells_lines_and_contradictions(
    stack: PreferenceStack, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"

    def row(number: int, *, reverse: bool = False) -> bytes:
        texts = [f"no {number}", f"yes {number}"]
        chosen, rejected = texts if reverse else texts[::-1]
        line = {"prompt": f"Q {number}?", "chosen": chosen, "rejected": rejected}
        return json.dumps(line).encode()

    rows = [row(number) for number in range(700)]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([*rows, b"{"]))
    say = ("import", str(path), "--source", "rule")
    code, _, err = await plinth(stack.stack, "preferences", *say)
    assert (code, f"{path}:701: not JSON" in err, "Traceback" in err) == (1, True, False)
    path.write_bytes(b"\n".join([*rows, b"", row(3, reverse=True)]))
    # Nothing of the file with a wrong line went in.
    for words in ("700 pairs imported, 0 were", "0 pairs imported, 700 were"):
        out = await preferences(stack, *say)
        assert words in out
        assert "left out: 1 that contradict" in out
        assert f"{path}:702: import said otherwise" in out
    path.write_bytes(b"\n".join([row(5), *(row(n, reverse=True) for n in range(10, 14))]))
    code, _, err = await plinth(stack.stack, "preferences", *say)
    assert (code, "that leaves out 80%, more than 50%" in err) == (1, True)
    assert "--max-left-out 0.8" in err
    out = await preferences(stack, *say, "--max-left-out", "0.8")
    assert "0 pairs imported, 1 were there already" in out
    # Or the other way out: it was somebody else.
    assert "5 pairs imported" in await preferences(stack, *say, "--annotator", "other")


async def test_a_task_that_is_refused_is_named_by_its_line(
    stack: PreferenceStack, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.jsonl"
    lines = [json.dumps({"prompt": f"{n}?", "responses": ["a", "b"]}) for n in range(50)]
    lines[43] = json.dumps({"prompt": "x?", "responses": ["a", "a"]})
    path.write_text("\ufeff" + "\n".join(lines))
    code, _, err = await plinth(stack.stack, "preferences", "tasks", "--add", str(path))
    assert (code, f"{path}:44.responses.1.text: the same text" in err) == (1, True)


async def test_for_tools(with_tasks: PreferenceStack) -> None:
    held = json.loads(await preferences(with_tasks, "next", "--annotator", "bob"))
    best, other = (one["response_id"] for one in held["responses"])
    given = ("--annotator", "bob", "--task", held["task_id"], "--fence", str(held["fence"]))
    code, _, err = await plinth(
        with_tasks.stack, "preferences", "judge", *given, "--ranking", f"{best}>nope"
    )
    assert (code, "nope" in err, "Traceback" in err) == (1, True, False)
    code, _, err = await plinth(with_tasks.stack, "preferences", "judge", *given)
    assert (code, "either --ranking or --all-bad" in err) == (1, True)
    out = await preferences(with_tasks, "judge", *given, "--ranking", f"{best}>{other}")
    assert "judgement 1" in out


async def test_what_is_no_task_is_named(stack: PreferenceStack, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x", "responses": ["a", "b"]}\n{"prompt": "x"}\n')
    code, _, err = await plinth(stack.stack, "preferences", "tasks", "--add", str(path))
    assert code == 1
    assert "bad.jsonl:2" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("typed", "tiers"),
    [
        ("A", [["A"], ["B", "C"]]),
        ("b > a = c", [["B"], ["A", "C"]]),
        ("C>B", [["C"], ["B"], ["A"]]),
        ("=", [["A", "B", "C"]]),
        ("x", []),
        ("s", None),
    ],
)
def test_verdicts(typed: str, tiers: list[list[str]] | None) -> None:
    assert parse_verdict(typed, ["A", "B", "C"]) == tiers


@pytest.mark.parametrize("typed", ["", "D", "A>A", "A>", ">", "A B"])
def test_what_is_no_verdict(typed: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_verdict(typed, ["A", "B", "C"])


def test_quitting() -> None:
    with pytest.raises(EOFError):
        parse_verdict("q", ["A", "B"])
