"""Texts that an error may quote and that something on its way can't hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NASTY: tuple[Any, ...] = (
    "caf\udce9.txt.gz",  # a file name that is not UTF-8, as Python gives it
    "\ud800 and \udfff",
    "a\x00b\x00",
    "\x1b]0;title\x07\x1b[2J\r\n",
    "\uffff\U0010ffff\u202e\u2028",
    "%" * 3000,
    "語" * 5000,
    "long " * 100_000,
    "",
    b"\xe9",
    None,
    ("a", 2),
    ValueError("\udce9"),
)


def nasty_text() -> st.SearchStrategy[Any]:
    """Any of them, or any text at all with halves of surrogate pairs and control characters."""
    return st.sampled_from(NASTY) | st.text(st.characters(), max_size=400)
