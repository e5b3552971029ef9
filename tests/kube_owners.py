"""Field owners as an API server keeps them in `managedFields`, and server-side apply by them.

As structured-merge-diff does it (v4, `merge.Updater`), with one simplification: a list is one
field, which holds for what a release's objects have changed by several (KubeRay's lists of worker
groups are atomic in its CRDs; a workload's `replicas` is in none).
"""

from __future__ import annotations

import json
from typing import Any

from kube_objects import Json

# Nobody owns what the server itself writes.
_SERVERS = {"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"}
_MISSING = object()
Path = tuple[str, ...]


class Conflict(Exception):
    """A server-side apply that others' fields forbid. causes: as in a Status' details."""

    def __init__(self, causes: list[Json]) -> None:
        self.causes = causes
        told = [f"{one['message']}: {one['field']}" for one in causes]
        count = f"{len(told)} conflict{'s' if len(told) > 1 else ''}"
        text = told[0] if len(told) == 1 else "".join(f"\n- {one}" for one in told)
        super().__init__(f"Apply failed with {count}: {text}")


def updated(before: Json, after: Json, manager: str, subresource: str = "") -> Json:
    """`after` with the owners that it has when `manager` wrote it over `before`."""
    sent = after["metadata"].get("managedFields")
    entries = _copy(sent or before.get("metadata", {}).get("managedFields") or [])
    old, new = _leaves(before), _leaves(after)
    changed = {path for path in old | new if old.get(path, _MISSING) != new.get(path, _MISSING)}
    if changed:
        for one in entries:
            _set_owned(one, owned(one) - changed)
        own = _entry(entries, after, manager, "Update", subresource)
        _set_owned(own, owned(own) | (changed & set(new)))
    result = _copy(after)
    result["metadata"]["managedFields"] = [one for one in entries if one["fieldsV1"]]
    return result


def applied(live: Json | None, config: Json, manager: str, *, force: bool) -> Json:
    """What a server-side apply of `config` makes of `live`. Conflict."""
    before: Json = _copy(live) if live else {"metadata": {}}
    entries = before["metadata"].get("managedFields") or []
    own = _entry(entries, config, manager, "Apply", "")
    wanted, there = _leaves(config), _leaves(before)
    causes = []
    for path, value in wanted.items():
        others = [one for one in entries if one is not own and path in owned(one)]
        if not others or there.get(path, _MISSING) == value:
            continue
        if force:
            for one in others:
                _set_owned(one, owned(one) - {path})
        else:
            causes += [_cause(one, path) for one in others]
    if causes:
        raise Conflict(causes)
    result = before
    for path in owned(own) - set(wanted):
        if not any(path in owned(one) for one in entries if one is not own):
            _remove(result, path)
    _set_owned(own, set(wanted))
    for path, value in wanted.items():
        _put(result, path, value)
    for key in ("apiVersion", "kind"):
        result[key] = config[key]
    result["metadata"]["managedFields"] = [one for one in entries if one["fieldsV1"]]
    return result


def defaulted(found: Json) -> Json:
    """Kubernetes' default for a number of pods that nobody says, and the cluster's own class."""
    if found.get("kind") in {"Deployment", "StatefulSet"}:
        found["spec"].setdefault("replicas", 1)
    if found.get("kind") == "PersistentVolumeClaim":
        found["spec"].setdefault("storageClassName", "standard")
    return found


def owned(entry: Json) -> set[Path]:
    """Paths of the leaves of an entry."""
    found: set[Path] = set()

    def walk(fields: Json, at: Path) -> None:
        for key, below in fields.items():
            if below:
                walk(below, (*at, key.removeprefix("f:")))
            elif key != ".":
                found.add((*at, key.removeprefix("f:")))

    walk(entry.get("fieldsV1") or {}, ())
    return found


def owner_of(found: Json, *path: str) -> list[tuple[str, str]]:
    """(manager, operation) of those who own a field."""
    entries = found["metadata"].get("managedFields") or []
    return [(one["manager"], one["operation"]) for one in entries if path in owned(one)]


def _cause(entry: Json, path: Path) -> Json:
    part = f' with subresource "{entry["subresource"]}"' if entry.get("subresource") else ""
    message = f'conflict with "{entry["manager"]}"{part} using {entry["apiVersion"]}'
    field = "".join(f".{step}" for step in path)
    return {"reason": "FieldManagerConflict", "message": message, "field": field}


def _entry(entries: list[Json], found: Json, manager: str, operation: str, part: str) -> Json:
    for one in entries:
        if (one["manager"], one["operation"], one.get("subresource", "")) == (
            manager,
            operation,
            part,
        ):
            return one
    made: Json = {"manager": manager, "operation": operation, "fieldsType": "FieldsV1"}
    made |= {"apiVersion": found.get("apiVersion", "v1"), "fieldsV1": {}}
    entries.append(made | ({"subresource": part} if part else {}))
    return entries[-1]


def _set_owned(entry: Json, paths: set[Path]) -> None:
    fields: Json = {}
    for path in sorted(paths):
        at = fields
        for step in path:
            at = at.setdefault(f"f:{step}", {})
    entry["fieldsV1"] = fields


def _leaves(found: Json) -> dict[Path, Any]:
    """Every field that holds no mapping (a list is one; an empty mapping too), with its value."""
    leaves: dict[Path, Any] = {}

    def walk(value: Any, at: Path) -> None:
        if isinstance(value, dict) and value:
            for key, below in value.items():
                if not (at == ("metadata",) and key in _SERVERS):
                    walk(below, (*at, key))
        else:
            leaves[at] = value

    walk({k: v for k, v in found.items() if k not in {"apiVersion", "kind", "status"}}, ())
    for name in ("name", "namespace"):
        leaves.pop(("metadata", name), None)
    return leaves


def _put(found: Json, path: Path, value: Any) -> None:
    for step in path[:-1]:
        found = found.setdefault(step, {})
    found[path[-1]] = value


def _remove(found: Json, path: Path) -> None:
    for step in path[:-1]:
        found = found.get(step) or {}
    found.pop(path[-1], None)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))
