"""Gateway API's routes: where they lead, what they hold, and whether two share a host."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_chart_mutations import BOTH, findings, mutated

import rendering


def route(host: str, **parent: str) -> dict:
    parents = [{"name": "edge", "namespace": "infra", **parent}]
    return {"enabled": True, "parentRefs": parents, "hostnames": [host]}


NOTED = {"annotations": {"example.com/owner": "models"}}
ROUTED = {
    **BOTH,
    "gateway": {
        "httpRoute": {**route("rest.example.com"), **NOTED, "timeouts": {"request": "0s"}},
        "grpcRoute": {**route("grpc.example.com"), **NOTED},
    },
}
MUTATIONS = {
    "a-route-to-nowhere": (
        "routes.yaml",
        "- {name: {{ $full }},",
        "- {name: {{ $full }}s,",
        ROUTED,
        "leads to Service/demo-plinth-gateways, which is missing",
    ),
    "a-route-to-the-other-port": (
        "routes.yaml",
        '"GRPCRoute" $service.grpcPort',
        '"GRPCRoute" $service.restPort',
        ROUTED,
        "GRPCRoute/demo-plinth-gateway leads to http, which speaks another protocol",
    ),
    "a-route-to-no-port": (
        "routes.yaml",
        '"HTTPRoute" $service.restPort',
        '"HTTPRoute" 80',
        ROUTED,
        "leads to port 80, which Service/demo-plinth-gateway lacks",
    ),
    "a-port-that-says-nothing": (
        "gateway.yaml",
        ", appProtocol: kubernetes.io/h2c",
        "",
        ROUTED,
        "leads to grpc, which speaks another protocol",
    ),
    "a-host-of-two-routes": (
        "routes.yaml",
        "{{- toYaml . | nindent 4 }}\n  {{- end }}\n  rules",
        "- example.com\n  {{- end }}\n  rules",
        ROUTED,
        "share a host on one listener",
    ),
    "a-routes-key": (
        "routes.yaml",
        "  hostnames:\n",
        "  hosts:\n",
        ROUTED,
        "'hosts' was unexpected",
    ),
    "a-route-without-its-limits": (
        "routes.yaml",
        "with $route.timeouts",
        "with dict",
        ROUTED,
        "has timeouts {}, and {'request': '0s'} are asked for",
    ),
    "a-route-without-its-annotations": (
        "routes.yaml",
        "with $route.annotations",
        "with dict",
        ROUTED,
        "GRPCRoute/demo-plinth-gateway has annotations {}, and {'example.com/owner': 'models'}",
    ),
}
LISTENERS = {
    "one host": (route("a.example"), route("a.example"), True),
    "each its own": (route("a.example"), route("b.example"), False),
    "all beside one": (route("*.example"), route("a.example"), True),
    "all of another": (route("*.example"), route("a.other"), False),
    "two sections": (
        route("a.example", sectionName="rest"),
        route("a.example", sectionName="grpc"),
        False,
    ),
    "a section and all": (route("a.example", sectionName="rest"), route("a.example"), True),
    "its own namespace": (
        {"enabled": True, "parentRefs": [{"name": "edge"}]},
        {"enabled": True, "parentRefs": [{"name": "edge", "namespace": rendering.NAMESPACE}]},
        True,
    ),
    "the usual kind": (
        route("a.example"),
        route("a.example", kind="Gateway", group="gateway.networking.k8s.io"),
        True,
    ),
    "another kind": (route("a.example"), route("a.example", kind="Service", group=""), False),
    "two Gateways": (route("a.example", name="inner"), route("a.example"), False),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_route_is_told(name: str, any_helm: rendering.Helm, tmp_path: Path) -> None:
    *_, values, told = MUTATIONS[name]
    chart = mutated(MUTATIONS[name], tmp_path)
    assert any(told in one for one in findings(any_helm, chart, values))


def test_the_chart_itself_is_not(any_helm: rendering.Helm) -> None:
    assert findings(any_helm, rendering.CHART, ROUTED) == []


@pytest.mark.parametrize("name", LISTENERS)
def test_two_routes_of_one_listener_have_hosts_of_their_own(
    name: str, any_helm: rendering.Helm
) -> None:
    """Of two such routes an implementation accepts the older one alone."""
    http, grpc, refused = LISTENERS[name]
    values = {"gateway": {"httpRoute": http, "grpcRoute": grpc}}
    if refused:
        with pytest.raises(rendering.Refused, match="hostnames of its own, or parentRefs"):
            any_helm.render(values)
    else:
        found = findings(any_helm, rendering.CHART, values)
        assert found == []
