"""Records on the store that only ever grow: numbered, each created exclusively, the newest wins.

Whoever adds number n+1 has seen number n; of two that try, one is refused. So a coordinator that
lost its lead without noticing can't overwrite what its successor wrote (fencing), on any store
with conditional create and without a lock.
"""

from __future__ import annotations

import re
from typing import Any

from plinth.shared.manifest import SCHEMA, canonical_json, parse_json
from plinth.shared.storage import Storage

_NUMBER = re.compile(r"([0-9]{8})\.json")


class RecordLog:
    """The numbered records in one folder: 00000001.json, 00000002.json, …

    Records never change, so what was read is kept.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self._known: dict[int, dict[str, Any]] = {}

    def names(self) -> list[str]:
        """What lies in the folder, sorted."""
        return self._storage.names(self._folder)

    def numbers(self, names: list[str] | None = None) -> list[int]:
        """Numbers of all records, ascending. names: of a look that was taken already."""
        found = self.names() if names is None else names
        matches = (_NUMBER.fullmatch(name) for name in found)
        return [int(match[1]) for match in matches if match]

    def last(self) -> int:
        """Number of the newest record, 0 when there is none."""
        return max(self.numbers(), default=0)

    def read(self, number: int) -> dict[str, Any]:
        """One record. FileNotFoundError; DataLoss when it is damaged."""
        if number not in self._known:
            path = self._path(number)
            data = self._storage.read(path)
            self._known[number] = parse_json(data, self._storage.uri(path), SCHEMA)
        return self._known[number]

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Number and content of the newest record."""
        number = self.last()
        return (number, self.read(number)) if number else None

    def append(self, number: int, record: dict[str, Any]) -> bool:
        """Writes record `number` (= last + 1); False when somebody else wrote it first."""
        data = canonical_json({**record, "plinth_schema": SCHEMA})
        return self._storage.create(self._path(number), data)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
