"""The owner of the process in which patterns are matched (`pattern_process`)."""

from __future__ import annotations

from plinth.shared.line_process import LineProcess

_WALL_S = 30.0  # for what processor time does not end; its start on a busy machine included


class Matcher:
    """Started when first used."""

    def __init__(self, seconds: float, *, wall_s: float = _WALL_S) -> None:
        """seconds: of processor time, for one pattern on one text."""
        self._process = LineProcess("plinth.reward.pattern_process", f"{seconds}", seconds=wall_s)

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        """Whether it matches; or why that can't be told."""
        question = {"pattern": pattern, "flags": flags, "full": full, "text": text}
        answer = await self._process.ask(question)
        if "error" in answer:
            return f"the pattern can't be matched: {answer['error']}"
        return bool(answer["found"])

    async def close(self) -> None:
        """Ends the process, if there is one."""
        await self._process.close()
