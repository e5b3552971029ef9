"""Schema of the values below `gateway`: its own, and its ways in."""

from __future__ import annotations

from schema_parts import FLAG, NAME, STRING, WORDS, Schema, at_least, choice, closed

# Of Gateway API: GEP-2257.
_DURATION: Schema = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}


def gateway(service: dict[str, Schema], resources: Schema) -> Schema:
    """service, resources: the schemas of what every service has."""
    return closed(
        **service,
        replicas=at_least(1),
        resources=resources,
        readiness=choice("door", "model"),
        service=closed(
            type=choice("ClusterIP", "NodePort", "LoadBalancer"),
            annotations=WORDS,
            restPort=at_least(1, 65535),
            grpcPort=at_least(1, 65535),
        ),
        ingress=closed(
            enabled=FLAG, className=NAME, annotations=WORDS, host=STRING, tlsSecret=NAME
        ),
        httpRoute=closed(**_route(), timeouts=closed(request=_DURATION, backendRequest=_DURATION)),
        grpcRoute=closed(**_route()),
        autoscaling=closed(
            enabled=FLAG,
            minReplicas=at_least(1),
            maxReplicas=at_least(1),
            targetCPUUtilization=at_least(0, 100),
            targetRequestsRunning=at_least(0),
        ),
    )


def _route() -> dict[str, Schema]:
    """HTTPRoute and GRPCRoute of gateway.networking.k8s.io/v1."""
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    host: Schema = {
        "type": "string",
        "pattern": rf"^(\*\.)?{label}(\.{label})*$",
    }
    parent = closed(
        group=STRING,
        kind=STRING,
        namespace=NAME,
        name=NAME,
        sectionName=NAME,
        port=at_least(1, 65535),
    )
    return {
        "enabled": FLAG,
        "parentRefs": {"type": "array", "items": {**parent, "required": ["name"]}},
        "hostnames": {"type": "array", "items": host, "maxItems": 16},
        "annotations": WORDS,
    }
