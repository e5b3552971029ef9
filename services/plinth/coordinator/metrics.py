"""What the coordinator tells Prometheus: runs and what their steps took of the data, who leads, and
the queues and Redis that all share.

Every replica looks at queues and Redis, so that nobody is blind when a leader dies; whoever reads
takes the largest of their words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from plinth.shared.connection import redis_errors
from plinth.shared.errors import PlinthError
from plinth.shared.intake import REASONS, intakes_of, reason_of
from plinth.shared.queue import Queue, queue_names
from plinth.shared.telemetry import counter, gauge, get_logger

LOOK_S = 5.0
LEADS = gauge("coordinator_leads", "1 while this replica leads, 0 while not.")
RUNS_ACTIVE = gauge("runs_active", "Runs that have not ended, as the leader sees them.")
RUNS_ENDED = counter("runs_ended_total", "Runs by how they ended.", ["state"])
for _state in ("succeeded", "failed", "cancelled"):  # a series that appears at 1 shows no increase
    RUNS_ENDED.labels(_state)
_TAKEN = counter(
    "data_items_taken_total",
    "What steps took of the data that they were given: files, documents, chats, pairs, prompts.",
    ["step_kind"],
)
_LEFT_OUT = counter(
    "data_items_left_out_total",
    "What steps left out of the data that they were given, by why.",
    ["step_kind", "reason"],
)
for _kind in ("data", "preferences", "prompts", "train"):  # those that count
    _TAKEN.labels(_kind)
    for _reason in REASONS:
        _LEFT_OUT.labels(_kind, _reason)
_ITEMS = gauge(
    "queue_items", "Items: waiting, leased, delayed (for a retry), dead.", ["queue", "state"]
)
_OLDEST = gauge(
    "queue_oldest_waiting_seconds", "How long the oldest item that waits has waited.", ["queue"]
)
_REDIS_USED = gauge("redis_memory_used_bytes", "What Redis holds.")
_REDIS_LIMIT = gauge("redis_memory_limit_bytes", "Redis's maxmemory; 0: none is set.")
_REDIS_DURABLE = gauge(
    "redis_durable",
    "1 while Redis writes its append-only file, 0 when it is off or a write failed.",
)
_log = get_logger("plinth.coordinator")


def took(step_kind: str, figures: Mapping[str, Any]) -> None:
    """A step of that kind has ended with these figures: what it took, and what it left out."""
    for intake in intakes_of(figures):
        _TAKEN.labels(step_kind).inc(intake.taken)
        for why, count in intake.left_out.items():
            _LEFT_OUT.labels(step_kind, reason_of(why)).inc(count)


async def keep_looking(redis: Redis) -> None:
    """Queues and Redis, every few seconds, until cancelled. While Redis is away the last figures
    stand: plinth_redis_reachable says that they are old."""
    seen = True
    while True:
        try:
            await look(redis)
            seen = True
        except PlinthError as error:
            if seen:
                _log.info("queues can't be looked at", reason=error.message)
            seen = False
        await asyncio.sleep(LOOK_S)


async def look(redis: Redis) -> None:
    """Once. PlinthError when Redis does not answer."""
    for name in await queue_names(redis):
        info = await Queue(redis, name).inspect()
        counted = {
            "waiting": info.length,
            "leased": info.pending,
            "delayed": info.delayed,
            "dead": info.dead,
        }
        for state, items in counted.items():
            _ITEMS.labels(name, state).set(items)
        _OLDEST.labels(name).set(info.oldest_s)
    with redis_errors():
        memory: dict[str, Any] = await redis.info("memory")
        disk: dict[str, Any] = await redis.info("persistence")
    _REDIS_USED.set(memory["used_memory"])
    _REDIS_LIMIT.set(memory.get("maxmemory", 0))
    _REDIS_DURABLE.set(
        disk.get("aof_enabled") == 1 and disk.get("aof_last_write_status", "ok") == "ok"
    )
