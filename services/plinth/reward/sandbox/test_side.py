"""The process in which tests run: names that they don't define are functions of the answer.

Started by `runner` with a JSON object on its standard input: setup, tests, candidate. Each test's
verdict goes out as a line on what was its standard output, which tests can't print to. Names of
Python's own builtins always mean those, whatever the answer defines. Standard library only.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from typing import Any

from plinth.reward.sandbox import literals
from plinth.reward.sandbox.lockdown import lock


class AnswerGone(BaseException):
    """The other process ended or broke the protocol: no test can pass any more."""


class Proxy:
    """A function that runs in the answer's process."""

    def __init__(self, name: str, calls: Any, results: Any) -> None:
        self._name, self._calls, self._results = name, calls, results

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._calls.write(literals.encode((self._name, list(arguments), named)))
        line = self._results.readline(literals.MAX_LINE + 1)
        if not line.endswith(b"\n"):
            raise AnswerGone("the answer ended its process")
        try:
            kind, *rest = literals.decode(line)
        except ValueError as error:
            raise AnswerGone(str(error)) from None
        if kind == "value" and len(rest) == 1:
            return rest[0]
        if len(rest) != 2:
            raise AnswerGone("the answer broke the protocol")
        told = f"{rest[1]}"[:300]
        if kind == "broken":
            raise AnswerGone(f"the answer can't be run: {rest[0]}: {told}"[:400])
        raise _error(str(rest[0]), told)


def _error(name: str, told: str) -> Exception:
    """The built-in error of that name. Not StopIteration: `all(map(f, …))` would take it for the
    end of the results and so for a success."""
    known = getattr(builtins, name, None)
    quiet = ("StopIteration", "StopAsyncIteration")
    if isinstance(known, type) and issubclass(known, Exception) and name not in quiet:
        try:
            return known(told)
        except TypeError:  # some want more than a text
            pass
    return RuntimeError(f"{name}: {told}")


def main(calls_fd: int, results_fd: int, cpu_s: int, memory_bytes: int, owner: int) -> None:
    """Runs each test; a line {"passed", "why"} each."""
    work = json.loads(sys.stdin.buffer.read())
    del sys.path[0]  # Plinth's own, put there by `runner`
    verdicts = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the owner gave /dev/null
    calls = os.fdopen(calls_fd, "wb", buffering=0)
    results = os.fdopen(results_fd, "rb")
    try:
        lock(cpu_s=cpu_s, memory_bytes=memory_bytes, owner=owner)
    except OSError as error:
        verdicts.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        return
    sources = [work["setup"], *work["tests"]]
    namespace: dict[str, Any] = {"__name__": "tests"}
    for name in _names(sources) - set(dir(builtins)):
        namespace[name] = Proxy(name, calls, results)
    if work["candidate"]:
        namespace["candidate"] = Proxy(work["candidate"], calls, results)
    broken = _run(work["setup"], namespace)
    for test in work["tests"]:
        why = broken or _run(test, namespace)
        verdicts.write(json.dumps({"passed": not why, "why": why}).encode() + b"\n")


def _run(source: str, namespace: dict[str, Any]) -> str:
    """Empty, or why it failed."""
    try:
        exec(compile(source, "<test>", "exec"), namespace)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 - whatever it was, the test failed
        return f"{type(error).__name__}: {error}"[:400].rstrip(": ")
    return ""


def _names(sources: list[str]) -> set[str]:
    """Every name that is read anywhere; what doesn't parse has none (and fails when it is run)."""
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found
