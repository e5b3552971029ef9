"""Names of preference resources, as clients and stages say them: "collections/default/tasks/t1"."""

from __future__ import annotations

import re

from plinth.shared.api.resource_names import Pattern
from plinth.shared.errors import InvalidArgument, plain

COLLECTIONS = Pattern("collections/{collection}")
TASKS = Pattern("collections/{collection}/tasks/{task}")
JUDGEMENTS = Pattern("collections/{collection}/tasks/{task}/judgements/{number}")
REPORTS = Pattern("collections/{collection}/report")

DEFAULT_COLLECTION = "default"
LIVE_COLLECTION = "live"  # recorded answers of served models, of all tenants
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def check_id(value: str, field: str) -> str:
    """`value` if it can be the id of a collection or task. InvalidArgument."""
    if not _ID.fullmatch(value):
        raise InvalidArgument(
            f"{field} {plain(value, 80)!r}: use 1 to 64 of A-Z a-z 0-9 . _ @ -, starting with a "
            "letter or a digit",
            field=field,
        )
    return value


def collection_of(name: str, field: str = "parent") -> str:
    """The id in "collections/…". InvalidArgument."""
    return check_id(COLLECTIONS.id(name, field), field)


def task_of(name: str, field: str = "name") -> tuple[str, str]:
    """The ids of collection and task in "collections/…/tasks/…". InvalidArgument."""
    collection, task_id = TASKS.ids(name, field)
    return check_id(collection, field), check_id(task_id, field)
