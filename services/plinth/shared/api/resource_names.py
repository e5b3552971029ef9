"""Names of resources: "runs/nightly-7" (AIP-122).

A resource's name is its collection and its id. Requests take nothing else, so that a name that was
read from one answer goes into the next call as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plinth.shared.errors import InvalidArgument, plain

_ID = r"[^/\s]{1,200}"
_PATH = r"\S{1,400}"
_VARIABLE = re.compile(r"\{\w+(=\*\*)?\}")
_SHOWN = 80


class Pattern:
    """One kind of resource name.

    pattern: "runs/{run}", or of a resource in a resource "collections/{collection}/tasks/{task}".
    An id that may have slashes is the last one, as in "queues/{queue}/items/{item=**}".
    """

    def __init__(self, pattern: str, id: str = _ID) -> None:
        """id: of the ids, a regular expression without groups."""
        self.pattern = pattern
        kinds = [found[1] for found in _VARIABLE.finditer(pattern)]
        self._words = re.split(r"\{[^}]+\}", pattern)
        ids = [f"({_PATH if kind else id})" for kind in kinds]
        parts = zip(self._words, [*ids, ""], strict=True)
        self._full = re.compile("".join(re.escape(word) + id for word, id in parts))

    def name(self, *ids: str) -> str:
        """The resource's name."""
        assert len(ids) == len(self._words) - 1, self.pattern
        return "".join(a + b for a, b in zip(self._words, [*ids, ""], strict=True))

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
