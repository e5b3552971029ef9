"""Ports: who holds one, and a message that says what to change."""

from __future__ import annotations

import random
import socket
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from plinth.shared.errors import FailedPrecondition
from plinth.shared.settings import Settings

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000  # below are the well-known ones and Ray's workers
_TRIES = 200
# Given away a moment ago: whoever asked may not listen there yet.
_given: deque[int] = deque(maxlen=_TRIES // 2)


def holder(port: int) -> str:
    """ "python (pid 123)", or "another user's process" where the system doesn't tell."""
    for connection in _connections():
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.laddr.port != port:
            continue
        if connection.pid is None:
            break
        try:
            process = psutil.Process(connection.pid)
            return f"{process.name()} (pid {process.pid})"
        except (psutil.Error, OSError):
            break
    return "a process that the system does not name"


def _connections() -> list[Any]:
    try:
        return list(psutil.net_connections("inet"))
    except (psutil.Error, OSError):  # some systems show them to nobody but root
        return []


def taken(host: str, port: int) -> bool:
    """Whether nobody else can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # A connection of an earlier stack that lingers in TIME_WAIT is no listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now, from outside the range that outgoing connections take theirs
    from: one of those could have it before whoever asked listens there. Nor is it one of those
    that this process was given before, lately."""
    if len(candidates := _candidates()) >= _TRIES:
        for port in random.sample(candidates, _TRIES):
            if port not in _given and not taken(host, port):
                _given.append(port)
                return port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _candidates() -> range:
    """Ports that the system gives to nobody by itself; few or none where it says so."""
    try:
        highest = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        highest = 32_768
    return range(_LOWEST, highest)


def gateway_ports(settings: Settings) -> tuple[int, int]:
    """REST and gRPC ports to use; FailedPrecondition when one is taken.

    0 means any: it is chosen here, so that a restarted gateway comes back where it was.
    """
    gateway = settings.gateway
    chosen = []
    for port, key in ((gateway.port, "port"), (gateway.grpc_port, "grpc_port")):
        if port and taken(gateway.host, port):
            raise FailedPrecondition(
                f"port {port} of {gateway.host} is in use by {holder(port)}: stop that, or choose "
                f"another with PLINTH_GATEWAY__{key.upper()} (or gateway.{key} in plinth.yaml)",
                reason="PORT_IN_USE",
                field=f"gateway.{key}",
                metadata={"port": str(port)},
            )
        chosen.append(port)
    rest, grpc = (port or free_port(gateway.host) for port in chosen)
    return rest, grpc
