"""Checks: what pods must reach outside of the release, by the network policies. DNS, and whoever
tells a pod its identity at an object store.

Addresses: Kubernetes' "Using NodeLocal DNSCache in Kubernetes Clusters" (169.254.20.10, and with
iptables the DNS Service's own); OpenShift's DNS operator (pods listen on 5353; a policy is enforced
behind the Service's translation); GKE's "About Workload Identity Federation" (169.254.169.254 port
80, or 169.254.169.252 port 988); EKS' "Pod Identity agent" (169.254.170.23, fd00:ec2::23, port 80).
By reading: none of these clusters was at hand.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import yaml

from release import Document, Pod, Release

# Where DNS may be: what, a pod of another namespace or an address, port.
_DNS = (
    ("the cluster's DNS pods", "", 53),
    ("OpenShift's DNS pods", "", 5353),
    ("NodeLocal DNSCache", "169.254.20.10", 53),
    ("NodeLocal DNSCache at the DNS Service's address", "10.96.0.10", 53),
)
_IDENTITY = {
    "gs": (
        ("GKE's metadata server", "169.254.169.254", 80),
        ("GKE's metadata server", "169.254.169.252", 988),
    ),
    "s3": (("EKS' Pod Identity agent", "169.254.170.23", 80),),
}
# What tells containers of a key that a Secret holds.
_KEYS = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "s3": "AWS_ACCESS_KEY_ID"}
# Addresses of a node that give away its own rights: nobody may ask there who need not.
_NODES = (("169.254.169.254", 80),)


def check(release: Release) -> Iterator[str]:
    """Everything about the way out, of a release with network policies."""
    for pod in release.pods:
        for what, address, port in _DNS:
            for protocol in ("UDP", "TCP"):
                if not goes_out(release, pod, address, port, protocol):
                    yield f"the network stops {pod.component} on its way to {what}:{port}"
    scheme = _scheme(release)
    for pod in release.pods:
        ray = pod.main["name"] == "ray"
        names = {one["name"] for one in pod.main.get("env", [])}
        asks = ray and scheme in _IDENTITY and _KEYS[scheme] not in names
        for what, address, port in _IDENTITY[scheme] if asks else ():
            if not goes_out(release, pod, address, port):
                yield f"the network stops {pod.component} on its way to {what}, {address}:{port}"
        for address, port in _NODES:
            if goes_out(release, pod, address, port) and not (asks and scheme == "gs"):
                yield f"the network lets {pod.component} ask {address}:{port} for the node's rights"


def _scheme(release: Release) -> str:
    """Of the store's URL; empty: it is a volume."""
    for config in release.of("ConfigMap"):
        if text := config.get("data", {}).get("plinth.yaml"):
            return str(yaml.safe_load(text).get("store_url", "")).partition("://")[0]
    return ""


def goes_out(release: Release, pod: Pod, address: str, port: int, protocol: str = "TCP") -> bool:
    """Whether a pod reaches an address; empty: any pod of another namespace."""
    closed = False
    for policy in release.of("NetworkPolicy"):
        spec = policy["spec"]
        if "Egress" not in spec["policyTypes"] or not pod.matches(spec["podSelector"]):
            continue
        closed = True
        for rule in spec.get("egress", []):
            ports, peers = rule.get("ports"), rule.get("to")
            if (ports is None or any(_is_port(one, port, protocol) for one in ports)) and (
                peers is None or any(_is_peer(one, address) for one in peers)
            ):
                return True
    return not closed


def _is_port(rule: Document, port: int, protocol: str) -> bool:
    return bool(rule.get("protocol", "TCP") == protocol and rule.get("port", port) == port)


def _is_peer(peer: dict[str, Any], address: str) -> bool:
    if "ipBlock" not in peer:
        return not address and peer.get("namespaceSelector") == {} and "podSelector" not in peer
    if not address:
        return False
    block = peer["ipBlock"]
    asked = ipaddress.ip_address(address)
    inside = asked in ipaddress.ip_network(block["cidr"])
    return inside and not any(asked in ipaddress.ip_network(one) for one in block.get("except", []))
