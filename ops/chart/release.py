"""A rendered release as the checks see it: its pods, whoever makes them, and its objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]
PART_OF = "app.kubernetes.io/part-of"


@dataclass(frozen=True)
class Pod:
    """One kind of pod. `count` may be 0 where an autoscaler makes them."""

    owner: str  # "StatefulSet/demo-plinth-head", "RayService/demo-plinth head"
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Document
    count: int
    # Ray's custom resources that one of them offers.
    offers: Mapping[str, float] = field(default_factory=dict)

    @property
    def component(self) -> str:
        return str(self.labels.get("app.kubernetes.io/component", ""))

    @property
    def containers(self) -> list[Document]:
        """All but the init containers, which serve nothing."""
        return list(self.spec["containers"])

    @property
    def main(self) -> Document:
        return self.containers[0]

    def ports(self) -> dict[str, int]:
        """Container ports by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
        }

    def has_port(self, port: int | str) -> bool:
        """By name or number."""
        known = self.ports()
        return port in known or port in known.values()

    def matches(self, selector: Mapping[str, Any] | None) -> bool:
        """Whether a label selector picks it; an empty one picks all, None none."""
        if selector is None:
            return False
        unknown = set(selector) - {"matchLabels"}
        if unknown:
            raise ValueError(f"a selector with {', '.join(unknown)} is not understood")
        wanted = selector.get("matchLabels", {})
        return all(self.labels.get(key) == value for key, value in wanted.items())


class Release:
    """The objects of one rendering: the chart's, by their label, and others (extraObjects), of
    which nothing is known but that they are there."""

    def __init__(self, documents: Sequence[Document]) -> None:
        labels = [one["metadata"].get("labels") or {} for one in documents]
        own = [one.get(PART_OF) == "plinth" for one in labels]
        self.documents = [one for one, ours in zip(documents, own, strict=True) if ours]
        self.others = [one for one, ours in zip(documents, own, strict=True) if not ours]
        self.pods = [pod for one in self.documents for pod in _pods(one)]

    def of(self, kind: str) -> list[Document]:
        """The chart's objects of a kind."""
        return [one for one in self.documents if one["kind"] == kind]

    def named(self, kind: str, name: str) -> Document | None:
        """One object, whoever's."""
        found = [
            one
            for one in [*self.documents, *self.others]
            if (one["kind"], one["metadata"].get("name")) == (kind, name)
        ]
        return found[0] if found else None

    def picked(self, labels: Mapping[str, str] | None) -> list[Pod]:
        """Pods that plain labels select, as a Service's selector does."""
        return [pod for pod in self.pods if labels and pod.matches({"matchLabels": labels})]

    @property
    def ray_pods(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.main["name"] == "ray"]


def title(document: Document) -> str:
    """ "Service/demo-plinth-gateway"."""
    return f"{document['kind']}/{document['metadata'].get('name', '?')}"


def _pods(document: Document) -> Iterator[Pod]:
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "Pod":
        metadata = document["metadata"]
        yield Pod(title(document), metadata["labels"], metadata["annotations"], spec, 1)
    elif kind in {"Deployment", "StatefulSet"}:
        template = spec["template"]
        offers = _started_with(template["spec"]["containers"][0])
        # An HPA counts where no number stands.
        yield _pod(title(document), template, spec.get("replicas", 1), offers)
    elif kind == "RayService":
        cluster = spec["rayClusterConfig"]
        head = cluster["headGroupSpec"]
        yield _pod(f"{title(document)} head", head["template"], 1, _declared(head))
        for group in cluster["workerGroupSpecs"]:
            owner = f"{title(document)} {group['groupName']}"
            yield _pod(owner, group["template"], group["replicas"], _declared(group))


def _pod(owner: str, template: Document, count: int, offers: Mapping[str, float]) -> Pod:
    metadata = template["metadata"]
    labels, notes = metadata.get("labels", {}), metadata.get("annotations", {})
    return Pod(owner, labels, notes, template["spec"], count, offers)


def _started_with(container: Document) -> dict[str, float]:
    """From `ray start --resources={…}`."""
    for argument in container.get("command", []):
        if str(argument).startswith("--resources="):
            return dict(json.loads(argument.partition("=")[2]))
    return {}


def _declared(group: Document) -> dict[str, float]:
    """From rayStartParams, which KubeRay pastes into a shell command: '{…}' with its quotes."""
    text = group["rayStartParams"].get("resources", "'{}'")
    if not (text.startswith("'") and text.endswith("'")):
        raise ValueError(f"resources {text} would lose its quotes in KubeRay's shell")
    return dict(json.loads(text[1:-1]))
