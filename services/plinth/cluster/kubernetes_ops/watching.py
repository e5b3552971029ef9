"""Pods as they change: listed, then watched, listed again when the watch is too old (410)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.calls import CALLS
from plinth.cluster.kubernetes_ops.failures import Gone, failure
from plinth.shared.errors import DeadlineExceeded

# One watch; the server ends it by itself, and the next one goes on from there.
WATCH_S = 30.0
_SLACK_S = 10.0
_BREATH_S = 0.1  # between watches, for a server that ends them at once


def pods(api: Api, selector: str, timeout_s: float) -> Iterator[dict[str, Json]]:
    """All pods that `selector` picks, by name: now, and after each change, until `timeout_s` is
    over. A quiet watch is told too, so that a caller may look at its own clock."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and not api.stopped.is_set():
        try:
            listing = api.listing("list pods", selector)
            known = {pod["metadata"]["name"]: pod for pod in listing["items"]}
            yield dict(known)
            version = str(listing["metadata"].get("resourceVersion", ""))
            while (left := end - time.monotonic()) > 0 and not api.stopped.is_set():
                for event in _watched(api, selector, version, min(left, WATCH_S)):
                    pod = event["object"]
                    version = str(pod["metadata"].get("resourceVersion", version))
                    if event["type"] == "DELETED":
                        known.pop(pod["metadata"]["name"], None)
                    elif event["type"] != "BOOKMARK":
                        known[pod["metadata"]["name"]] = pod
                    yield dict(known)
                yield dict(known)
                api.stopped.wait(_BREATH_S)
        except Gone:
            api.stopped.wait(_BREATH_S)


def _watched(api: Api, selector: str, version: str, seconds: float) -> Iterator[Json]:
    """Events of one watch, until the server ends it. Gone: `version` is too old."""
    query = {
        "watch": "true",
        "labelSelector": selector,
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(max(1, round(seconds))),
    }
    try:
        for line in api.lines("watch pods", query, quiet_s=seconds + _SLACK_S):
            event = json.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise failure(
                    CALLS["watch pods"],
                    int(status.get("code", 500)),
                    json.dumps(status),
                    {},
                    api.namespace,
                    api.host,
                )
            yield event
    except DeadlineExceeded:
        return  # a server that kept quiet longer than it was asked to: watch again
