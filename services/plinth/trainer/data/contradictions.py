"""Pairs that say the opposite of others: whoever prefers A to B, and elsewhere B to A."""

from __future__ import annotations

from hashlib import blake2b

from plinth.trainer.data.documents import Document


class Contradictions:
    """Counts them as they go by; keeps 16 bytes of each pair."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.count = 0  # pairs that an earlier one contradicts

    def add(self, document: Document) -> None:
        """Anything but a pair is passed over."""
        if document.rejected is None:
            return
        prompt, chosen = document.prompt_key(), document.messages[-1][1]
        self._seen.add(_key(prompt, chosen, document.rejected))
        self.count += _key(prompt, document.rejected, chosen) in self._seen


def _key(prompt: bytes, chosen: str, rejected: str) -> bytes:
    sides = [blake2b(text.encode(), digest_size=16).digest() for text in (chosen, rejected)]
    return blake2b(prompt + sides[0] + sides[1], digest_size=16).digest()
