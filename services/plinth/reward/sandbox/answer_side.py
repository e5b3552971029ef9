"""The process in which an answer's code runs: it answers calls, and knows nothing of tests.

Started by `runner` with the code on its standard input. Calls come in on one pipe, results go out
on another, a line each (`literals`). Standard library only.
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

from plinth.reward.sandbox import literals
from plinth.reward.sandbox.lockdown import lock


def main(calls_fd: int, results_fd: int, cpu_s: int, memory_bytes: int, owner: int) -> None:
    """Runs until the calls end."""
    code = sys.stdin.buffer.read().decode("utf-8", "replace")
    del sys.path[0]  # Plinth's own, put there by `runner`
    calls, results = os.fdopen(calls_fd, "rb"), os.fdopen(results_fd, "wb", buffering=0)
    lock(cpu_s=cpu_s, memory_bytes=memory_bytes, owner=owner)
    namespace: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        exec(compile(code, "<answer>", "exec"), namespace)  # noqa: S102 - what this place is for
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it is told to whoever calls
        _refuse_all(calls, results, _told(error))
        return
    for line in iter(calls.readline, b""):
        results.write(_answer(line, namespace))


def _answer(line: bytes, namespace: dict[str, Any]) -> bytes:
    name, arguments, named = literals.decode(line)
    try:
        if name not in namespace:
            raise NameError(f"the answer defines no {name!r}")
        return literals.encode(("value", namespace[name](*arguments, **named)))
    except BaseException as error:  # noqa: BLE001 - the caller is told which
        return literals.encode(("raised", *_told(error)))


def _refuse_all(calls: BinaryIO, results: Any, told: tuple[str, str]) -> None:
    for _ in iter(calls.readline, b""):
        results.write(literals.encode(("broken", *told)))


def _told(error: BaseException) -> tuple[str, str]:
    try:
        return type(error).__name__[:100], str(error)[:300]
    except BaseException:  # noqa: BLE001 - an exception whose text is code that fails
        return "Exception", ""
