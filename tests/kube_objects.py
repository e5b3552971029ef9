"""What an API server does to objects: selects, patches, scales."""

from __future__ import annotations

import json
import re
from typing import Any

Json = dict[str, Any]


def is_kind(collection: str, found: Json) -> bool:
    """Whether an object belongs in a collection, by its kind."""
    return bool(found.get("kind", "Pod").lower() + "s" == collection.rpartition("/")[2])


def selected(path: str, found: Json, collection: str, query: dict[str, str]) -> bool:
    """Whether a list or watch call is about the object at `path`."""
    if path.rpartition("/")[0] != collection:
        return False
    labels = found["metadata"].get("labels") or {}
    wanted = query.get("labelSelector", "")
    for one in re.split(r",(?![^(]*\))", wanted) if wanted else ():
        if many := re.fullmatch(r"(\S+) in \((.*)\)", one):
            if labels.get(many[1]) not in many[2].split(","):
                return False
        else:
            key, _, value = one.partition("=")
            if labels.get(key) != value:
                return False
    for one in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = one.partition("=")
        at: Any = found
        for part in key.split("."):
            at = at.get(part, {})
        if at != value:
            return False
    return True


def scale_of(found: Json) -> Json:
    """The scale subresource of a workload."""
    metadata = {key: found["metadata"][key] for key in ("name", "resourceVersion")}
    spec = {"replicas": found["spec"].get("replicas", 1)}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec}


def merged(found: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    into = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = merged(into.get(key), value)
    return into


def patched(found: Json, operations: list[Json]) -> Json:
    """RFC 6902, as far as "add" and "replace" go."""
    changed: Json = json.loads(json.dumps(found))
    for one in operations:
        assert one["op"] in {"add", "replace"}
        *parents, last = one["path"].strip("/").split("/")
        at: Any = changed
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at[part]
        assert one["op"] == "add" or last in at
        at[last] = one["value"]
    return changed
