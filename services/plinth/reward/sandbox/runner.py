"""The owner of a sandbox's two processes: starts them, waits so long and no longer, ends both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import plinth
from plinth.shared.errors import FailedPrecondition

MAX_OUTPUT = 256 << 10  # bytes of verdicts that are read
_SOURCES = str(Path(plinth.__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Limits:
    """wall_s: for both processes together. cpu_s and memory_bytes: for each."""

    wall_s: float
    cpu_s: int
    memory_bytes: int


@dataclass(frozen=True)
class SandboxOutcome:
    """How many of the tests passed, and why the first of the others did not."""

    passed: int
    total: int
    why: str = ""


class Sandbox:
    """Runs at most `concurrency` answers at a time."""

    def __init__(self, concurrency: int) -> None:
        self._places = asyncio.Semaphore(concurrency)

    async def run(
        self,
        code: str,
        tests: Sequence[str],
        limits: Limits,
        *,
        setup: str = "",
        candidate: str = "",
    ) -> SandboxOutcome:
        """FailedPrecondition where the kernel can't lock a process in; nothing is run then."""
        async with self._places:
            with tempfile.TemporaryDirectory(prefix="plinth-answer-") as folder:
                work: dict[str, object] = {
                    "setup": setup,
                    "tests": list(tests),
                    "candidate": candidate,
                }
                lines, in_time = await _run_both(code, work, limits, folder)
        return _outcome(lines, len(tests), None if in_time else limits.wall_s)


async def _run_both(
    code: str, work: dict[str, object], limits: Limits, folder: str
) -> tuple[list[bytes], bool]:
    """(lines of verdicts, whether the tests ended by themselves)."""
    pipes = [os.pipe(), os.pipe()]  # calls: tests to answer; results: back
    (answer_in, tests_out), (tests_in, answer_out) = pipes
    try:
        answer = await _start("answer_side", (answer_in, answer_out), limits, folder)
        tests = await _start("test_side", (tests_out, tests_in), limits, folder)
    finally:
        for handle in (handle for pipe in pipes for handle in pipe):
            os.close(handle)
    read = bytearray()
    try:
        async with asyncio.timeout(limits.wall_s):
            await asyncio.gather(
                _feed(answer, code.encode("utf-8", "replace")),
                _feed(tests, json.dumps(work).encode()),
                _collect(tests, read),
            )
        in_time = True
    except TimeoutError:
        in_time = False
    finally:
        for process in (answer, tests):
            await _end(process)
    return bytes(read).split(b"\n")[:-1], in_time


async def _start(
    side: str, handles: tuple[int, int], limits: Limits, folder: str
) -> asyncio.subprocess.Process:
    """A fresh interpreter that inherits two pipes and nothing else: no variables, no site."""
    start = f"import sys; sys.path.insert(0, {_SOURCES!r}); "
    start += f"from plinth.reward.sandbox.{side} import main; "
    start += (
        f"main({handles[0]}, {handles[1]}, {limits.cpu_s}, {limits.memory_bytes}, {os.getpid()})"
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-B", "-X", "utf8", "-c", start),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if side == "test_side" else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd=folder,
        pass_fds=handles,
        start_new_session=True,
        limit=MAX_OUTPUT,
    )


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):  # it ended at once; the verdicts, or their lack, tell why
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _collect(process: asyncio.subprocess.Process, into: bytearray) -> None:
    assert process.stdout is not None
    while chunk := await process.stdout.read(64 << 10):
        into += chunk
        if len(into) > MAX_OUTPUT:
            return


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()


def _outcome(lines: Sequence[bytes], total: int, late_s: float | None) -> SandboxOutcome:
    passed, why = 0, ""
    for line in lines[:total]:
        verdict = json.loads(line)
        if "refused" in verdict:
            raise FailedPrecondition(
                f"this machine can't run code safely, so it runs none: {verdict['refused']}",
                reason="SANDBOX_UNAVAILABLE",
            )
        passed += bool(verdict["passed"])
        why = why or str(verdict["why"])
    if len(lines) < total and not why:
        ended = "the tests ended before their verdict (memory, CPU time or a crash)"
        why = ended if late_s is None else f"it ran for more than {late_s:g} s"
    return SandboxOutcome(passed, total, why)
