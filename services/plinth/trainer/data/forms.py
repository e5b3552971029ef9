"""The forms of data: what the documents of a corpus or a dataset are, whatever is learned of them.

What is learned is a training's objective; `loop/config.py` says which forms each learns from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Form:
    """How people are told of it."""

    called: str
    unit: str  # what is counted, in the plural
    split_by: str  # what the splits must not share


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "text": Form("plain text", "documents", "text"),
        "messages": Form("chat messages", "chats", "prompt"),
        "pairs": Form("preference pairs", "pairs", "prompt"),
        "prompts": Form("prompts alone", "prompts", "prompt"),
    }
)
