"""Regular expressions where they can do no harm: `python -m plinth.shared.pattern_process SECONDS`.

Python's `re` backtracks, and an answer may be just the text on which it does so for ever. Here each
question has so much processor time and no more (not wall time: a busy machine changes no verdict).
Memory is capped by the kernel; what hangs all the same is ended by the owner. One JSON object a
line in, one out. Standard library only.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import NoReturn

MEMORY_BYTES = 512 << 20
LAST_RESORT_SECONDS = 60  # wall time, when the owner was killed too


def _out_of_time(signal_number: int, frame: object) -> NoReturn:
    raise TimeoutError


def _answer(line: str, seconds: float) -> dict[str, object]:
    question = json.loads(line)
    try:
        # `re` looks for signals while it matches, so this ends it.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            pattern = re.compile(question["pattern"], question["flags"])
            if "texts" in question:
                return {"groups": pattern.groups, "last": _last(pattern, question["texts"])}
            look = pattern.fullmatch if question["full"] else pattern.search
            return {"found": look(question["text"]) is not None}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TimeoutError:
        return {"error": f"it takes more than {seconds:g} s of processor time"}
    except (re.error, MemoryError, RecursionError, OverflowError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _last(pattern: re.Pattern[str], texts: list[str]) -> list[str | None]:
    """What the first group holds in each text's last match in which it holds anything."""
    if not pattern.groups:
        return [None] * len(texts)
    found: list[str | None] = []
    for text in texts:
        last = None
        for match in pattern.finditer(text):
            last = (match[1] or "").strip() or last
        found.append(last)
    return found


def main(seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _out_of_time)
    # Ctrl-C in a terminal reaches the whole group; the owner decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        signal.alarm(LAST_RESORT_SECONDS)
        sys.stdout.write(json.dumps(_answer(line, seconds)) + "\n")
        sys.stdout.flush()
        signal.alarm(0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
