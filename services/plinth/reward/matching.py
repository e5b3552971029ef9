"""Regular expressions where they can do no harm: `python -m plinth.reward.matching`.

Python's `re` backtracks, and an answer may be just the text on which it does so for ever. So
matching happens in a process that its owner ends when it takes too long; its memory is capped by
the kernel. One JSON object a line in, one out.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys

from plinth.shared.line_process import LineProcess

MEMORY_BYTES = 512 << 20
LAST_RESORT_SECONDS = 30


class Matcher:
    """Owner of the process."""

    def __init__(self, seconds: float) -> None:
        self._process = LineProcess("plinth.reward.matching", seconds=seconds)

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        """Whether it matches; or why that can't be told."""
        question = {"pattern": pattern, "flags": flags, "full": full, "text": text}
        answer = await self._process.ask(question)
        if "error" in answer:
            return f"the pattern can't be matched: {answer['error']}"
        return bool(answer["found"])

    async def close(self) -> None:
        await self._process.close()


def _answer(line: str) -> dict[str, object]:
    question = json.loads(line)
    try:
        pattern = re.compile(question["pattern"], question["flags"])
        look = pattern.fullmatch if question["full"] else pattern.search
        return {"found": look(question["text"]) is not None}
    except (re.error, MemoryError, RecursionError, OverflowError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Ctrl-C in a terminal reaches the whole group; the owner decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        # An owner that was killed ends nobody: the kernel then does.
        signal.alarm(LAST_RESORT_SECONDS)
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()
        signal.alarm(0)


if __name__ == "__main__":
    main()
