"""The owner of the process in which patterns are matched (`pattern_process`)."""

from __future__ import annotations

from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument
from plinth.shared.line_process import LineProcess

_WALL_S = 30.0  # for what processor time does not end; its start on a busy machine included


class Matcher:
    """Started when first used."""

    def __init__(self, seconds: float, *, wall_s: float = _WALL_S) -> None:
        """seconds: of processor time, for one pattern on one text."""
        self._process = LineProcess("plinth.shared.pattern_process", f"{seconds}", seconds=wall_s)

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        """Whether it matches; or why that can't be told."""
        question = {"pattern": pattern, "flags": flags, "full": full, "text": text}
        answer = await self._process.ask(question)
        if "error" in answer:
            return f"the pattern can't be matched: {answer['error']}"
        return bool(answer["found"])

    async def last(self, pattern: str, texts: Sequence[str]) -> list[str | None]:
        """What the first group holds, without white space around it, in the last match in each
        text in which it holds anything; None where there is none. `seconds` are for all of them.

        InvalidArgument: no pattern, one without a group, one that takes too long.
        """
        question = {"pattern": pattern, "flags": 0, "texts": list(texts)}
        answer = await self._process.ask(question)
        if "error" in answer:
            raise InvalidArgument(
                f"the pattern can't be matched: {answer['error']}", reason="INVALID_PATTERN"
            )
        if not answer["groups"]:
            raise InvalidArgument(
                "the pattern has no group that holds the answer, as in 'The answer is (.+)'",
                reason="INVALID_PATTERN",
            )
        return list(answer["last"])

    async def close(self) -> None:
        """Ends the process, if there is one."""
        await self._process.close()
