"""Empties the Ray node of this pod before the pod ends: `python -m plinth.cluster.node_drain`.

A preStop hook, in two steps. A replica that is not the only one by its deployment first waits for
another: pods are replaced one after the other, and the last one's successor may still load. Then
Ray is told that the node drains, so Serve starts successors elsewhere (where there is room) and
lets the replica here drain; this waits until the stage's health port is silent. An upgrade replaces
Ray's head as well, at the same time: the replica goes on without it, and so this waits for it.
Streams that a shard could not finish go on at another, by the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from plinth.shared.connection import connect
from plinth.shared.errors import PlinthError, Unavailable, described
from plinth.shared.registry import Registry, Replica
from plinth.shared.settings import Settings, load_settings
from plinth.shared.telemetry import configure_logging, get_logger

POLL_S = 0.5
GCS_TIMEOUT_S, CONNECT_S = 10.0, 2.0
# For another replica and for Ray's head together, before the drain's own time begins. Bounded: when
# all of a release ends, neither comes back. The chart's grace has room for it.
PATIENCE_S = 60.0
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


def held_here_alone(replicas: Iterable[Replica], wanted: Mapping[str, int], host: str) -> set[str]:
    """What a replica on `host` holds and no other: models of shards, the stage's own name of all
    others. Of what is `wanted` once there is no other to wait for; what nobody says anything of may
    be wanted more often, since the head, whose reconciler says it, may be replaced just now."""
    here: set[str] = set()
    elsewhere: set[str] = set()
    for replica in replicas:
        shard = replica.stage == "inference"
        names = {str(held["model"]) for held in replica.bindings} if shard else {replica.stage}
        where = here if replica.address.rpartition(":")[0].strip("[]") == host else elsewhere
        where.update(names)
    return {name for name in here - elsewhere if wanted.get(name, 2) > 1}


async def await_others(settings: Settings, stage: str, host: str, timeout_s: float) -> bool:
    """Whether `host` came to hold nothing of `stage` alone within `timeout_s`. True too when Redis
    is away: nobody can say then."""
    if settings.redis_url is None:
        return True
    redis = connect(settings.redis_url.get_secret_value())
    try:
        registry, end = Registry(redis), time.monotonic() + timeout_s
        while True:
            wanted = _wanted(await registry.replicas("reconciler"), stage)
            alone = held_here_alone(await registry.replicas(stage), wanted, host)
            if not alone:
                return True
            if time.monotonic() >= end:
                _log.warning("no other came", held_here_alone=sorted(alone), seconds=timeout_s)
                return False
            await asyncio.sleep(POLL_S)
    except PlinthError as error:
        _log.warning("not known who else is there", error=error.message)
        return True
    finally:
        await redis.aclose()


def _wanted(reconcilers: Iterable[Replica], stage: str) -> dict[str, int]:
    """How often each model is wanted, or any other stage, as the reconciler announces it. Not in
    one mapping: a model may be called like a stage."""
    wanted: dict[str, int] = {}
    for one in reconcilers:
        if stage == "inference":
            models = json.loads(one.fields.get("models", "[]"))
            wanted |= {model["name"]: model["shards"] for model in models}
        else:
            wanted |= json.loads(one.fields.get("stages", "{}"))
    return wanted


def drain_this_node(address: str, node_ip: str, deadline_s: float) -> str:
    """Tells GCS at `address` that the node with `node_ip` drains; returns its id.

    OSError when nobody listens there, Unavailable when no such node lives or GCS refuses. Ray has
    no public call for it; this is the one that its own `ray drain-node` makes (2.60, which
    pyproject.toml pins).
    """
    # Ray's client takes 40 s to say that nobody listens.
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
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


def drain_once_answered(
    address: str,
    node_ip: str,
    deadline_s: float,
    give_up: float,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """As `drain_this_node`, asked again until `give_up` (of time.monotonic()) while GCS is away."""
    while True:
        try:
            return drain_this_node(address, node_ip, deadline_s)
        except Exception as error:  # of Ray's client too
            if time.monotonic() >= give_up:
                raise
            _log.info("Ray's head does not take it yet", error=described(error))
        pause(POLL_S)


def _wait_for_others(settings: Settings, stage: str, host: str, timeout_s: float) -> None:
    """`await_others`; the node is drained whatever is wrong with what others announce."""
    try:
        asyncio.run(await_others(settings, stage, host, timeout_s))
    except Exception as error:  # noqa: BLE001
        _log.warning("did not wait for others", error=described(error))


def main(arguments: list[str]) -> int:
    """0 when the node is empty. 1: not in time, or Ray is away; the pod ends all the same."""
    parser = argparse.ArgumentParser(prog="plinth.cluster.node_drain")
    parser.add_argument("--timeout", type=float, required=True, help="of the drain, in seconds")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="before it, in seconds")
    parser.add_argument("--stage", default="", help="of the replica here; none: nobody waits")
    asked = parser.parse_args(arguments)
    settings = load_settings()
    configure_logging(settings, "drain")
    head, host = os.environ["RAY_ADDRESS"], os.environ["POD_IP"]
    give_up = time.monotonic() + asked.patience
    if asked.stage:
        _wait_for_others(settings, asked.stage, host, asked.patience)
    try:
        node = drain_once_answered(head, host, asked.timeout, give_up)
    except Exception as error:  # noqa: BLE001  (of Ray's client too: the pod ends in any case)
        _log.warning("not drained", error=described(error))
        return 1
    _log.info("draining", node=node, seconds=asked.timeout)
    empty = wait_silent(settings.health_port, asked.timeout, host=host)
    _log.info("drained" if empty else "not empty in time", node=node)
    return 0 if empty else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
