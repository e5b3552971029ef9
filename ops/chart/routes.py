"""Checks of Gateway API's routes: where they lead, and that no two share a host of a listener.

HTTPRoute and GRPCRoute of gateway.networking.k8s.io/v1, by the words of its own definition: of two
routes of both kinds whose hosts meet on one listener, the older one alone is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from release import Document, Release, title
from rendering import NAMESPACE

# A Service's word for what a port speaks, by which implementations choose HTTP/2 (KEP-3726).
_SPEAKS = {"HTTPRoute": "http", "GRPCRoute": "kubernetes.io/h2c"}
_VALUES = {"HTTPRoute": "httpRoute", "GRPCRoute": "grpcRoute"}
# What a parentRef that leaves it out means.
_PARENT = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": NAMESPACE}


def check(release: Release, values: Mapping[str, Any]) -> Iterator[str]:
    """Everything about routes. `values`: what is asked for there is in them."""
    routes = [one for kind in _SPEAKS for one in release.of(kind)]
    for route in routes:
        yield from _asked(route, values["gateway"][_VALUES[route["kind"]]])
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield from _backend(release, route, backend)
    for http in release.of("HTTPRoute"):
        for grpc in release.of("GRPCRoute"):
            if _meet(http, grpc):
                yield f"{title(http)} and {title(grpc)} share a host on one listener"


def _asked(route: Document, values: Mapping[str, Any]) -> Iterator[str]:
    spec = route["spec"]
    held = {
        "annotations": route["metadata"].get("annotations", {}),
        "hostnames": spec.get("hostnames", []),
        "parentRefs": spec["parentRefs"],
    }
    for rule in spec["rules"]:
        held["timeouts"] = rule.get("timeouts", {})
        for what, wanted in values.items():
            if what != "enabled" and held[what] != wanted:
                yield f"{title(route)} has {what} {held[what]}, and {wanted} are asked for"


def _backend(release: Release, route: Document, backend: Document) -> Iterator[str]:
    service = release.named("Service", backend["name"])
    if service is None:
        yield f"{title(route)} leads to Service/{backend['name']}, which is missing"
        return
    found = [port for port in service["spec"]["ports"] if port["port"] == backend["port"]]
    if not found:
        yield f"{title(route)} leads to port {backend['port']}, which {title(service)} lacks"
    elif found[0].get("appProtocol") != _SPEAKS[route["kind"]]:
        yield f"{title(route)} leads to {found[0]['name']}, which speaks another protocol"


def _meet(one: Document, two: Document) -> bool:
    pairs = [(a, b) for a in one["spec"]["parentRefs"] for b in two["spec"]["parentRefs"]]
    listener = any(
        a["name"] == b["name"]
        and all(a.get(key, told) == b.get(key, told) for key, told in _PARENT.items())
        and all(
            a.get(key) == b.get(key) or not (a.get(key) and b.get(key))
            for key in ("sectionName", "port")
        )
        for a, b in pairs
    )
    hosts = [route["spec"].get("hostnames") or ["*"] for route in (one, two)]
    return listener and any(_same(a, b) for a in hosts[0] for b in hosts[1])


def _same(one: str, two: str) -> bool:
    if "*" in (one, two) or one == two:
        return True
    return any(a.startswith("*.") and b.endswith(a[1:]) for a, b in ((one, two), (two, one)))
