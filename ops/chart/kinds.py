"""Checks of each object against its API's schema; unknown keys and unknown kinds are errors.

Kubernetes' own kinds: `kubernetes-validate --strict`, on the oldest and the newest version that the
chart supports. Others: the operator's CustomResourceDefinitions where a folder of them is given,
else the schema of what the chart uses in schemas/, each of which names what it was written from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from release import Document, Release, title

OLDEST, NEWEST = "1.30.0", "1.37.0"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
OTHERS = frozenset(
    {
        ("ray.io/v1", "RayService"),
        ("cert-manager.io/v1", "Certificate"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "GRPCRoute"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("monitoring.coreos.com/v1", "ServiceMonitor"),
        ("monitoring.coreos.com/v1", "PrometheusRule"),
    }
)


class Kinds:
    """Schemas; `crds`: a folder with CustomResourceDefinitions as YAML, or None."""

    def __init__(self, crds: Path | None = None) -> None:
        self._schemas = _own_schemas()
        self.sources = {
            kind: str(schema["x-written-from"]) for kind, schema in self._schemas.items()
        }
        if crds is not None:
            found = dict(_definitions(crds))
            if not found:
                raise ValueError(f"{crds} holds no CustomResourceDefinition")
            self._schemas.update(found)
            self.sources.update(dict.fromkeys(found, f"the CustomResourceDefinition in {crds}"))

    def check(self, release: Release, version: str) -> Iterator[str]:
        """Errors of every object as Kubernetes `version` would tell them."""
        for one in release.documents:
            if (one["apiVersion"], one["kind"]) in OTHERS:
                yield from self._other(one)
            else:
                yield from _builtin(one, version)
        for pod in release.pods:
            if pod.owner.startswith("RayService/"):
                template = {"metadata": {"labels": dict(pod.labels)}, "spec": pod.spec}
                whole = {"apiVersion": "v1", "kind": "Pod", **template}
                yield from (f"{pod.owner}: {error}" for error in _builtin(whole, version))

    def _other(self, document: Document) -> Iterator[str]:
        schema = self._schemas[document["apiVersion"], document["kind"]]
        for error in jsonschema.Draft7Validator(schema).iter_errors(document):
            where = ".".join(str(part) for part in error.absolute_path)
            yield f"{title(document)}: {where or 'the object'}: {error.message[:300]}"


def _builtin(document: Document, version: str) -> Iterator[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        kind = f"{document['apiVersion']} {document['kind']}"
        yield f"{title(document)}: {kind} is unknown to {version}: {error.message}"
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        yield f"{title(document)} on {version}: {where}: {str(error.message)[:300]}"


def _own_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text())
        properties = schema["properties"]
        found[properties["apiVersion"]["const"], properties["kind"]["const"]] = schema
    return found


def _definitions(folder: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        for one in yaml.safe_load_all(path.read_text()):
            if not isinstance(one, dict) or one.get("kind") != "CustomResourceDefinition":
                continue
            spec = one["spec"]
            for version in spec["versions"]:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                name = f"{spec['group']}/{version['name']}"
                yield (name, spec["names"]["kind"]), schema


def _strict(node: Any) -> Any:
    """The API server drops unknown keys; here they are errors, as it tells with `strict`."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, Mapping):
        return node
    made = {key: _strict(value) for key, value in node.items() if key != "format"}
    if node.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "number", "string"]}
    elif "properties" in node and isinstance(node["properties"], Mapping):
        free = node.get("x-kubernetes-preserve-unknown-fields")
        if not free and "additionalProperties" not in node:
            made["additionalProperties"] = False
    return made
