"""Empties the Ray node of this pod before the pod ends: `python -m plinth.cluster.node_drain`.

A preStop hook, in two steps. A shard whose model has several first waits for another of them: pods
are replaced one after the other, and the last one's successor may still load its weights. Then Ray
is told that the node drains, so Serve starts successors elsewhere (where there is room) and lets
the replicas here drain; this waits until the stage's health port is silent. Streams that a replica
could not finish go on at another shard, by the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable

from plinth.shared.connection import connect
from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.registry import Registry, Replica
from plinth.shared.settings import Settings, load_settings
from plinth.shared.telemetry import configure_logging, get_logger

POLL_S = 0.5
GCS_TIMEOUT_S = 10.0
PATIENCE = 0.5  # part of the time that may go by in waiting for another shard
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


def held_here_alone(shards: Iterable[Replica], wanted: dict[str, int], host: str) -> set[str]:
    """Models that a shard on `host` holds and no other shard, though several are `wanted`. A model
    with one shard is alone by its deployment, and nothing to wait for."""
    here: set[str] = set()
    elsewhere: set[str] = set()
    for shard in shards:
        names = {str(held["model"]) for held in shard.bindings}
        where = here if shard.address.rpartition(":")[0].strip("[]") == host else elsewhere
        where.update(names)
    return {name for name in here - elsewhere if wanted.get(name, 1) > 1}


async def await_other_shards(settings: Settings, host: str, timeout_s: float) -> bool:
    """Whether `host` came to hold no model alone within `timeout_s`. True too when Redis is away:
    nobody can say then."""
    if settings.redis_url is None:
        return True
    redis = connect(settings.redis_url.get_secret_value())
    try:
        registry, end = Registry(redis), time.monotonic() + timeout_s
        while True:
            wanted = _wanted(await registry.replicas("reconciler"))
            alone = held_here_alone(await registry.replicas("inference"), wanted, host)
            if not alone:
                return True
            if time.monotonic() >= end:
                _log.warning("no other shard came", models=sorted(alone), seconds=timeout_s)
                return False
            await asyncio.sleep(POLL_S)
    except PlinthError as error:
        _log.warning("not known who else holds the weights", error=error.message)
        return True
    finally:
        await redis.aclose()


def _wanted(reconcilers: Iterable[Replica]) -> dict[str, int]:
    """Shards that each model is to have, as the reconciler announces it."""
    return {
        str(model["name"]): int(model["shards"])
        for one in reconcilers
        for model in json.loads(one.fields.get("models", "[]"))
    }


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
    end, host = time.monotonic() + timeout_s, os.environ["POD_IP"]
    asyncio.run(await_other_shards(settings, host, PATIENCE * timeout_s))
    timeout_s = max(0.0, end - time.monotonic())
    try:
        node = drain_this_node(os.environ["RAY_ADDRESS"], host, timeout_s)
    except Exception as error:  # noqa: BLE001  (of Ray's client too: the pod ends in any case)
        _log.warning("not drained", error=f"{type(error).__name__}: {error}")
        return 1
    _log.info("draining", node=node, seconds=timeout_s)
    empty = wait_silent(settings.health_port, timeout_s, host=host)
    _log.info("drained" if empty else "not empty in time", node=node)
    return 0 if empty else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
