"""A child process that answers lines: started when first used, ended when it takes too long.

One JSON object a line goes in, one comes out. For work on a stranger's input that may never end
or need all memory (templates, patterns): the child limits itself, its owner watches the clock.
Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from plinth.shared.errors import Internal

MAX_LINE = 256 << 20


class LineProcess:
    """Owner of one `python -m <module> <arguments>`; one question at a time."""

    def __init__(self, module: str, *arguments: str, seconds: float) -> None:
        """seconds: wall time of an answer, the start of the process included."""
        self._module, self._arguments, self._seconds = module, arguments, seconds
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, question: object) -> dict[str, Any]:
        """What the child said, or {"error": why it was ended, "ended": True}. Internal: its pipes
        broke."""
        line = json.dumps(question).encode() + b"\n"
        async with self._lock:
            return await self._ask(line)

    async def close(self) -> None:
        """Ends the process, if there is one."""
        async with self._lock:
            await self._end()

    async def _ask(self, line: bytes) -> dict[str, Any]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._seconds):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
        except TimeoutError:
            await self._end()
            error = f"it ran for more than {self._seconds:g} s and was ended"
            return {"error": error, "ended": True}
        except (ConnectionError, ValueError) as error:  # its pipe broke; its line is too long
            await self._end()
            raise Internal(f"{self._module} broke: {error}") from error
        except asyncio.CancelledError:
            await self._end()  # an answer half read must not be the next one's
            raise
        if not answer.endswith(b"\n"):
            code = await self._end()
            return {"error": f"it ended its sandbox (exit {code})", "ended": True}
        content: dict[str, Any] = json.loads(answer)
        return content

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE,
            )
        return self._process

    async def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.returncode is None:
            process.kill()
        return await process.wait()
