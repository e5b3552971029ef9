"""Stop strings over text that arrives in pieces.

A piece may end in the middle of a stop string, so what could still become one is held back until
it is known not to be. The result is the same however the text is cut: everything before the
earliest occurrence of any stop string, and never a part of one that does occur. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feeds on text, releases what is safe; `hit` is set once a stop string has occurred."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Text that can be passed on now. Once a stop string occurred, always empty."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        window = self._held + text
        # Of stop strings that occur, the earliest start wins, as in a search of the whole text.
        # One that starts earlier and is not complete yet must be waited for.
        keep = self._first_possible_start(window)
        start, stop = self._first_occurrence(window)
        if stop is not None and start <= keep:
            self.hit, self._held = stop, ""
            return window[:start]
        self._held = window[keep:]
        return window[:keep]

    def finish(self) -> str:
        """What is left when no more text comes: a beginning without its end, or an occurrence
        that an unfinished, earlier one had overshadowed."""
        if self.hit is not None:
            return ""
        window, self._held = self._held, ""
        start, stop = self._first_occurrence(window)
        if stop is None:
            return window
        self.hit = stop
        return window[:start]

    def _first_occurrence(self, window: str) -> tuple[int, str | None]:
        found = [(at, stop) for stop in self._stops if (at := window.find(stop)) >= 0]
        return min(found) if found else (len(window), None)

    def _first_possible_start(self, window: str) -> int:
        """First position from which the window's rest is a proper prefix of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for start in range(max(0, len(window) - longest), len(window)):
            rest = window[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return len(window)
