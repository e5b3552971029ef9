"""What must be held out together: rows of one `split_group`, rows of one prompt, and, where groups
share a prompt, those groups whole."""

from __future__ import annotations

from collections.abc import Mapping

from plinth.trainer.data.documents import Document


class Joined:
    """Told all documents in any order; keys (`Document.split_key`) that must be on one side form a
    set with one name. Union-find with path halving (Tarjan, van Leeuwen 1984). Some 200 bytes for
    each group and each prompt of one; nothing for rows without a group where there are none."""

    def __init__(self) -> None:
        self._above: dict[bytes, bytes] = {}
        self._groups: set[bytes] = set()

    def add(self, document: Document) -> bytes:
        """Its key, by which it is split as long as nothing is known of those that come after."""
        key = document.split_key()
        if document.split_group:
            self._groups.add(key)
            one, other = self._name(key), self._name(document.prompt_key())
            if one != other:
                # A group's key comes before a prompt's, and of two of a kind the smaller: which
                # it is hangs on no order, and a group alone keeps the side of its own key.
                first, second = sorted((one, other), key=self._rank)
                self._above[second] = first
        return key

    def _rank(self, name: bytes) -> tuple[bool, bytes]:
        return not self.is_group(name), name

    def is_group(self, key: bytes) -> bool:
        return key in self._groups

    def names(self, keys: Mapping[bytes, int]) -> dict[bytes, bytes]:
        """Each key with the name of its set."""
        return {key: self._name(key) for key in keys}

    def _name(self, key: bytes) -> bytes:
        above = self._above
        while (parent := above.get(key, key)) != key:
            above[key] = grandparent = above.get(parent, parent)
            key = grandparent
        return key
