"""Who owns a field of the chart's objects, by their `managedFields`: the chart, also of what
`plinth k8s` changes.

Kubernetes gives a field to whoever changes it, and refuses a server-side apply (Helm 4's way) that
says another value than its owner's. So what is changed here is given back, and the next `helm
upgrade` or `helm rollback` sets its own number, as Helm 3 does, which asks for no owner. What a
HorizontalPodAutoscaler owns is never changed here, and the chart leaves it out.

Format of `fieldsV1`: a tree of "f:NAME" (a key), "k:{…}" (an item of a keyed list), "." (the thing
itself); a leaf is {}. kubernetes.io/docs/reference/using-api/server-side-apply, and
https://pkg.go.dev/k8s.io/apimachinery/pkg/apis/meta/v1#FieldsV1
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.shared.errors import PlinthError

# What our own changes are made as, for as long as they are ours.
MANAGER: Final = "plinth-k8s"
AS_US: Final = {"fieldManager": MANAGER}
# A label that the chart puts on all of its objects and nobody else sets.
_CHARTS_LABEL = ("f:metadata", "f:labels", "f:helm.sh/chart")
Path = Sequence[str]


def unchanged(found: Json) -> Json:
    """An operation that makes the whole patch a conflict if somebody wrote since."""
    version = found["metadata"]["resourceVersion"]
    return {"op": "replace", "path": "/metadata/resourceVersion", "value": version}


def hand_back(api: Api, kind: str, name: str, paths: Sequence[Path]) -> str:
    """Makes the chart the one owner of fields, and of what is below them, whatever their values.

    kind: of `CALLS` ("statefulset"). paths: such as ("spec", "replicas"). Returns "", or what is
    left to do where that fails.
    """

    def change() -> None:
        found = api.call(f"get {kind}", name=name)
        before = found["metadata"].get("managedFields") or []
        after = owned_by_chart(before, paths)
        if after != before:
            owners = {"op": "replace", "path": "/metadata/managedFields", "value": after}
            api.call(f"patch {kind}", name=name, query=AS_US, body=[unchanged(found), owners])

    try:
        api.fresh(change)
    except PlinthError as error:  # the change itself is made
        return (
            f"what was changed of {kind} {name} is not the chart's own any more, and Helm 4 takes "
            f"`--force-conflicts` at its next upgrade or rollback: {error.message}"
        )
    return ""


def owned_by_chart(entries: list[Json], paths: Sequence[Path]) -> list[Json]:
    """`managedFields` after the chart took over `paths` from everybody who only updates. As they
    are where nobody applied the chart."""
    changed: list[Json] = json.loads(json.dumps(entries))
    charts = [one for one in changed if _has(one.get("fieldsV1", {}), _CHARTS_LABEL)]
    if not charts:
        return entries
    # Helm 4 applies; Helm 3 updates, and Helm 4 would take over from it by its name.
    chart = next((one for one in charts if one["operation"] == "Apply"), charts[0])
    for path in paths:
        steps = [f"f:{step}" for step in path]
        for one in changed:
            if one is chart or one["operation"] == "Apply" or one.get("subresource") == "status":
                continue
            if (taken := _cut(one.get("fieldsV1", {}), steps)) is not None:
                _paste(chart["fieldsV1"], steps, taken)
    return [one for one in changed if one.get("fieldsV1")]


def _has(fields: Json, steps: Path) -> bool:
    for step in steps:
        if step not in fields:
            return False
        fields = fields[step]
    return True


def _cut(fields: Json, steps: Path) -> Json | None:
    """Takes what is at `steps` out of the tree, and branches that are empty then."""
    first, *rest = steps
    if first not in fields:
        return None
    if not rest:
        taken: Json = fields.pop(first)
        return taken
    found = _cut(fields[first], rest)
    if found is not None and not fields[first]:
        del fields[first]
    return found


def _paste(fields: Json, steps: Path, subtree: Json) -> None:
    for step in steps:
        fields = fields.setdefault(step, {})
    _merge(fields, subtree)


def _merge(into: Any, more: Json) -> None:
    for key, value in more.items():
        _merge(into.setdefault(key, {}), value)
