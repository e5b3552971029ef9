"""Empties the Ray node of this pod before the pod ends: `python -m plinth.cluster.node_drain`.

A preStop hook: Ray is told that the node drains, so Serve starts successors elsewhere (where there
is room) and then lets the replicas here drain; this waits until the stage's health port is silent.
Streams that a replica could not finish go on at another shard, by the gateway.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable

from plinth.shared.errors import Unavailable
from plinth.shared.settings import load_settings
from plinth.shared.telemetry import configure_logging, get_logger

POLL_S = 0.5
GCS_TIMEOUT_S = 10.0
_log = get_logger("plinth.cluster.node_drain")


def wait_silent(
    port: int,
    timeout_s: float,
    *,
    host: str = "127.0.0.1",
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether nobody listens on `port` any more within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=POLL_S).close()
        except OSError:
            return True
        if time.monotonic() >= end:
            return False
        pause(POLL_S)


def drain_this_node(address: str, node_ip: str, deadline_s: float) -> str:
    """Tells GCS at `address` that the node with `node_ip` drains; returns its id.

    Unavailable when no such node lives, or GCS refuses. Ray has no public call for it; this is the
    one that its own `ray drain-node` makes (2.60, which pyproject.toml pins).
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: PLC0415
    from ray.core.generated import autoscaler_pb2, gcs_pb2  # noqa: PLC0415

    client = GcsClient(address=address)
    alive = [
        node_id.hex()
        for node_id, info in client.get_all_node_info(timeout=GCS_TIMEOUT_S).items()
        if info.node_manager_address == node_ip and info.state == gcs_pb2.GcsNodeInfo.ALIVE
    ]
    if not alive:
        raise Unavailable(f"no living Ray node has the address {node_ip}")
    node_id = alive[0]
    accepted, why = client.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "its pod ends",
        int((time.time() + deadline_s) * 1000),
    )
    if not accepted:
        raise Unavailable(f"Ray does not drain node {node_id}: {why}")
    return str(node_id)


def main(arguments: list[str]) -> int:
    """0 when the node is empty. 1: not in time, or Ray is away; the pod ends all the same."""
    parser = argparse.ArgumentParser(prog="plinth.cluster.node_drain")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
    timeout_s = parser.parse_args(arguments).timeout
    settings = load_settings()
    configure_logging(settings, "drain")
    try:
        node = drain_this_node(os.environ["RAY_ADDRESS"], os.environ["POD_IP"], timeout_s)
    except Exception as error:  # noqa: BLE001  (of Ray's client too: the pod ends in any case)
        _log.warning("not drained", error=f"{type(error).__name__}: {error}")
        return 1
    _log.info("draining", node=node, seconds=timeout_s)
    empty = wait_silent(settings.health_port, timeout_s, host=os.environ["POD_IP"])
    _log.info("drained" if empty else "not empty in time", node=node)
    return 0 if empty else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
