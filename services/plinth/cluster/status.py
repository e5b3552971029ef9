"""What a running stack looks like, gathered for one screen or one JSON document."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import psutil

from plinth.cluster import processes
from plinth.cluster.layout import Layout, StackState
from plinth.cluster.stack import connect_clients, running_state
from plinth.shared import status_views as views
from plinth.shared.canary import Canaries
from plinth.shared.errors import PlinthError
from plinth.shared.identity import SYSTEM
from plinth.shared.platform_status import PlatformStatus
from plinth.shared.rpc.client import StageClients
from plinth.shared.settings import Settings
from plinth.v1 import operations_pb2, runs_pb2

ANSWER_S = 3.0

T = TypeVar("T")


async def gather(settings: Settings) -> dict[str, Any]:
    """{"stack", "components", "processes", "replicas", "models", "queues", "canaries", "runs",
    "errors", "unknown"}, whose parts look as those of `plinth k8s status`.

    What could not be asked (Redis away, coordinator restarting) is left empty and named, with the
    reason, in "unknown". NotFound when no stack runs.
    """
    state = running_state(settings)
    unknown: dict[str, str] = {}
    redis, _, registry, clients = connect_clients(settings)
    status = PlatformStatus(redis, registry, Canaries(redis))
    try:
        known = await _ask(
            "replicas", status.replicas_and_models(), unknown, operations_pb2.GetStatusResponse()
        )
        error = await _ask("redis", status.write_error(), unknown, "")
        return {
            "stack": _stack(settings, state),
            "components": {name: vars(part) for name, part in state.components.items()},
            "processes": await asyncio.to_thread(_processes, state),
            "replicas": [views.replica(one) for one in known.replicas],
            "models": [views.model(one) for one in known.models],
            "queues": [
                views.queue(one) for one in await _ask("queues", status.queues(), unknown, [])
            ],
            "canaries": [
                views.canary(one)
                for one in await _ask("canaries", status.canaries(known.models), unknown, [])
            ],
            "runs": [views.run(one) for one in await _ask("runs", _runs(clients), unknown, [])],
            "errors": [{"where": "redis", "what": error}] if error else [],
            "unknown": unknown,
        }
    finally:
        await clients.close()
        await redis.aclose()


async def _ask(what: str, answer: Awaitable[T], unknown: dict[str, str], empty: T) -> T:
    try:
        return await asyncio.wait_for(answer, ANSWER_S)
    except PlinthError as error:
        unknown[what] = error.message
    except TimeoutError:
        unknown[what] = f"no answer within {ANSWER_S:.0f} s"
    return empty


def _stack(settings: Settings, state: StackState) -> dict[str, Any]:
    return {
        "data_dir": str(settings.data_dir),
        "phase": state.phase,
        "up_s": round(time.time() - state.started),
        "start_took_s": round(state.ready_s, 1),
        "url": state.rest_url(tls=settings.gateway.tls.on),
        "grpc": f"{state.gateway_host}:{state.gateway_grpc_port}",
        "logs": str(Layout.of(settings).logs),
    }


def _processes(state: StackState) -> list[dict[str, Any]]:
    """Every process of the stack with its share of memory (PSS where the system tells it)."""
    found = []
    for process in processes.of_stack(state.stack_id, state.sessions):
        try:
            found.append(
                {
                    "pid": process.pid,
                    "name": _title(process),
                    "memory_bytes": memory_bytes(process),
                    "cpu_s": round(sum(process.cpu_times()[:2]), 1),
                }
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile
    return found


def memory_bytes(process: psutil.Process) -> int:
    """Proportional set size; resident set size where the system has no such figure."""
    full = process.memory_full_info()
    return int(getattr(full, "pss", full.rss))


def _title(process: psutil.Process) -> str:
    command = process.cmdline()
    if "-m" in command and len(command) > command.index("-m") + 1:
        return command[command.index("-m") + 1]
    return command[0].rpartition("/")[2] if command else process.name()


async def _runs(clients: StageClients) -> list[runs_pb2.Run]:
    stub = await clients.runs(SYSTEM)
    request = runs_pb2.ListRunsRequest(page_size=views.RUNS_SHOWN)
    return list((await stub.ListRuns(request, timeout=ANSWER_S)).runs)
