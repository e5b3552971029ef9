"""What a running stack looks like, gathered for one screen or one JSON document."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
import psutil
from redis.asyncio import Redis

from plinth.cluster import processes
from plinth.cluster.layout import Layout, StackState
from plinth.cluster.stack import connect_clients, running_state
from plinth.shared.errors import PlinthError
from plinth.shared.identity import SYSTEM
from plinth.shared.queue import Queue, queue_names
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.settings import Settings
from plinth.v1 import coordinator_pb2

STAGES = ("tokenizer", "trainer", "reward", "coordinator", "reconciler", "inference")
RUNS_SHOWN = 5
ANSWER_S = 3.0

T = TypeVar("T")


async def gather(settings: Settings) -> dict[str, Any]:
    """{"stack", "components", "processes", "replicas", "models", "queues", "runs", "unknown"}.

    What could not be asked (Redis away, coordinator restarting) is left empty and named, with the
    reason, in "unknown". NotFound when no stack runs.
    """
    state = running_state(settings)
    unknown: dict[str, str] = {}
    redis, _, registry, clients = connect_clients(settings)
    try:
        replicas = await _ask("replicas", _replicas(registry), unknown, [])
        return {
            "stack": _stack(settings, state),
            "components": {name: vars(part) for name, part in state.components.items()},
            "processes": await asyncio.to_thread(_processes, state),
            "replicas": replicas,
            "models": _models(replicas),
            "queues": await _ask("queues", _queues(redis), unknown, {}),
            "runs": await _ask("runs", _runs(clients), unknown, []),
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
    except grpc.aio.AioRpcError as error:
        unknown[what] = f"{error.code().name}: {error.details()}"
    return empty


def _stack(settings: Settings, state: StackState) -> dict[str, Any]:
    return {
        "data_dir": str(settings.data_dir),
        "phase": state.phase,
        "up_s": round(time.time() - state.started),
        "start_took_s": round(state.ready_s, 1),
        "url": f"http://{state.gateway_host}:{state.gateway_port}",
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


async def _replicas(registry: Registry) -> list[dict[str, Any]]:
    return [
        {"stage": r.stage, "id": r.id, "address": r.address, "load": r.load, **r.fields}
        for stage in STAGES
        for r in await registry.replicas(stage)
    ]


def _models(replicas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the reconciler announces them."""
    for replica in replicas:
        if replica["stage"] == "reconciler":
            models: list[dict[str, Any]] = json.loads(replica.get("models", "[]"))
            return models
    return []


async def _queues(redis: Redis) -> dict[str, dict[str, int]]:
    return {name: vars(await Queue(redis, name).inspect()) for name in await queue_names(redis)}


async def _runs(clients: StageClients) -> list[dict[str, Any]]:
    stub = await clients.coordinator(SYSTEM)
    request = coordinator_pb2.ListRunsRequest(limit=RUNS_SHOWN)
    answer = await stub.ListRuns(request, timeout=ANSWER_S)
    return [
        {
            "run_id": run.run_id,
            "name": run.name,
            "state": coordinator_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower(),
            "steps_done": sum(step.state in _DONE for step in run.steps),
            "steps": len(run.steps),
        }
        for run in answer.runs
    ]


_DONE = (coordinator_pb2.STEP_STATE_SUCCEEDED, coordinator_pb2.STEP_STATE_REUSED)
