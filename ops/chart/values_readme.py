"""The chart's README.md: every value with its default, from the comments of values.yaml.

    python ops/chart/values_readme.py [--check]

A comment that begins with two dashes belongs to the key below it; comments of sections and of keys
with children become the section's line. A key whose name says it all may go without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "plinth"
TARGET = CHART / "README.md"
# Keys that mean the same wherever they stand, and what they are.
COMMON = {
    "enabled": "Whether it is on.",
    "create": "Whether the chart makes it.",
    "resources": "Requests and limits.",
    "size": "Of the volume.",
    "storageClass": "Empty: the cluster's default class.",
    "existingClaim": "A PersistentVolumeClaim of your own instead.",
    "accessModes": "Of the volume.",
    "annotations": "Of the object.",
    "podAnnotations": "Of the pods.",
    "podLabels": "Of the pods, besides the chart's own.",
    "nodeSelector": "Of the pods.",
    "tolerations": "Of the pods.",
    "affinity": "Of the pods.",
    "priorityClassName": "Of the pods.",
    "runtimeClassName": "Of the pods.",
    "podSecurityContext": "Of the pods.",
    "securityContext": "Of each container.",
    "extraEnv": "More variables of the main container.",
    "extraEnvFrom": "More sources of variables.",
    "extraVolumes": "More volumes of the pods.",
    "extraVolumeMounts": "More mounts of the main container.",
    "pullPolicy": "Of all images.",
    "replicas": "How many.",
    "pods": "How many pods.",
    "maxPods": "Most pods that an autoscaler may start: Ray's (rayservice), or the stage's own.",
    "cpus": "Logical CPUs of the Ray node.",
    "shm": "Shared memory.",
    "pdb": "Disruption budget: enabled, and maxUnavailable or minAvailable.",
    "type": "Which kind.",
    "host": "Its name or address.",
    "port": "Its port.",
    "hostPath": "The folder, for hostPath.",
    "sizeLimit": "Of the emptyDir.",
    "issuerRef": "The Issuer.",
    "duration": "Of a certificate.",
    "renewBefore": "The end of a certificate.",
    "idleTimeoutSeconds": "Before an idle pod is taken away.",
    "caKey": "The key in that Secret.",
    "passwordKey": "The key in that Secret.",
    "key": "The key in that Secret.",
    "region": "Of the store.",
    "maxUnavailable": "Pods that a drain of nodes may take at a time.",
    "startup": "Times of the probe.",
    "readiness": "Times of the probe.",
    "liveness": "Times of the probe.",
    "className": "Of the ingress.",
    "restPort": "Of the Service.",
    "grpcPort": "Of the Service.",
    "minReplicas": "Of the autoscaler.",
    "maxReplicas": "Of the autoscaler.",
    "model": "A served name; empty: the first.",
    "extraEgress": "The same for what goes out.",
}
# Told in one line with all that is in them.
WHOLE = frozenset({"resources", "podSecurityContext", "securityContext"})


@dataclass(frozen=True)
class Key:
    """One line of values.yaml that holds a value."""

    path: str
    comment: str
    default: Any


def keys() -> list[Key]:
    """In the order of the file. A mapping with children on lines of its own is no key itself."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    return list(_read((CHART / "values.yaml").read_text().splitlines(), values))


def _read(lines: list[str], values: dict[str, Any]) -> Iterator[Key]:
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for number, line in enumerate(lines):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if stripped.startswith("#"):
            text = stripped[1:].strip()
            if text.startswith("-- "):
                comment = [text[3:]]
            elif comment:
                comment.append(text)
            continue
        if not stripped or stripped.startswith("- "):
            comment = []
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        name = stripped.partition(":")[0]
        stack.append((indent, name))
        value: Any = values
        for _, part in stack:
            value = value[part]
        following = next((one for one in lines[number + 1 :] if one.strip()), "")
        parts = [part for _, part in stack]
        if WHOLE & set(parts[:-1]):
            continue  # told with its parent
        opens = stripped.endswith(":") and not following.strip().startswith("- ")
        opens = opens and name not in WHOLE
        if not opens or comment:
            path = ".".join(parts)
            yield Key(path, " ".join(comment) or COMMON.get(name, ""), None if opens else value)
        comment = []


def undocumented() -> list[str]:
    """Paths of keys that neither a comment nor a common name explains."""
    return [key.path for key in keys() if not key.comment]


def text() -> str:
    """The file's content."""
    rows = "\n".join(
        f"| `{key.path}` | {_cell(key.default)} | {key.comment.replace('|', chr(92) + '|')} |"
        for key in keys()
    )
    return f"""# The chart `plinth`

Plinth on Kubernetes 1.30 or newer: gateway, Redis, and the stages on Ray, by KubeRay's operator
(`ray.mode: rayservice`, 1.6 or newer) or by StatefulSets (`ray.mode: static`).

```
helm install plinth charts/plinth -f charts/plinth/values-local.yaml       # one node, no operator
helm install plinth charts/plinth -f charts/plinth/values-production.yaml  # after editing it
helm test plinth --logs
```

`values-local.yaml`, `values-gpu.yaml` and `values-production.yaml` are whole examples, to be edited
and combined. A wrong key, a wrong type and values that don't fit one another are refused with the
path and what would be right. `make chart` holds all of this, and README.md and values.schema.json
are made by `ops/chart/values_readme.py` and `ops/chart/values_schema.py`.

One pod of a stage is one Ray node with room for one replica, which opens the stage's port itself
(gRPC 50051, health without TLS 50050, metrics 9464), so that the headless Service of a stage leads
straight to its replicas. `plinth k8s scale` adds room; more pods than replicas are spares that take
over without a gap. Every stage takes the keys of `defaults`, and those that it sets win.

| value | default | what it is |
|---|---|---|
{rows}
"""


def _cell(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value)}`"


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        return 0 if TARGET.read_text() == text() else 1
    TARGET.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
