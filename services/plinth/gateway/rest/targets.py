"""What Prometheus scrapes, for its HTTP service discovery: whoever announces itself now.

https://prometheus.io/docs/prometheus/latest/http_sd/. On a laptop replicas take any free port, so
that a list written by hand is wrong after the next start.
"""

from __future__ import annotations

from typing import Any

from plinth.shared.registry import STAGES, Registry

# Stages that may have pods without a replica, as the chart marks them: such a one is no fault.
_WITH_SPARES = frozenset({"inference"})


async def targets(registry: Registry, gateway: str, *, https: bool = False) -> list[dict[str, Any]]:
    """[{"targets": ["host:port"], "labels": {"job": "plinth-<stage>", "replica", "spares"}}]: the
    gateway at `gateway`, by TLS with `https`, then each stage's replicas. Unavailable when Redis
    never answered."""
    own = _target(gateway, "gateway", "")
    if https:
        own["labels"]["__scheme__"] = "https"  # which Prometheus scrapes by
    found = [own]
    for stage in STAGES:
        for replica in await registry.replicas(stage):
            if address := replica.fields.get("metrics"):
                found.append(_target(address, stage, replica.id))
    return found


def _target(address: str, stage: str, replica: str) -> dict[str, Any]:
    labels = {"job": f"plinth-{stage}", "spares": "yes" if stage in _WITH_SPARES else ""}
    if replica:
        labels["replica"] = replica
    return {"targets": [address], "labels": labels}
