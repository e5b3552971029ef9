"""Names of resources: "runs/nightly-7" (AIP-122).

A resource's name is its collection and its id. Requests take nothing else, so that a name that was
read from one answer goes into the next call as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument, plain

_ID = r"[^/\s]{1,200}"
_SHOWN = 80


class Pattern:
    """One kind of resource name.

    pattern: "runs/{run}", or of a resource in a resource "collections/{collection}/tasks/{task}".
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        words = re.split(r"\{\w+\}", pattern)
        self._words = [re.escape(word) for word in words]
        self._full = re.compile(f"({_ID})".join(self._words))

    def name(self, *ids: str) -> str:
        """The resource's name."""
        parts = re.split(r"\{\w+\}", self.pattern)
        assert len(ids) == len(parts) - 1, self.pattern
        return "".join(a + b for a, b in zip(parts, [*ids, ""], strict=True))

    def ids(self, name: str, field: str = "name") -> Sequence[str]:
        """The ids in `name`, in order. InvalidArgument with what it has to look like."""
        found = self._full.fullmatch(name)
        if found is None:
            raise InvalidArgument(
                f"{field} is the name of a resource, {self.pattern!r}, not {plain(name, _SHOWN)!r}",
                reason="RESOURCE_NAME",
                field=field,
            )
        return found.groups()

    def id(self, name: str, field: str = "name") -> str:
        """The last of the ids in `name`."""
        return self.ids(name, field)[-1]
