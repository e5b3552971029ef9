"""Where a policy run and the shards that sample for it meet: a queue, and its items' names.

An item is a `RolloutTask` (protos/plinth/v1/rollouts.proto); its result is a `RolloutResult`.
"""

from __future__ import annotations

from hashlib import sha256

from redis.asyncio import Redis

from plinth.shared.queue import Queue
from plinth.v1 import rollouts_pb2 as pb

QUEUE = "rollouts"
MAX_SAMPLES = 64  # of one task
LEASE_S = 15.0
# A result is taken within seconds; a run that goes on after a stop may ask for it again.
RESULT_TTL_S = 3600.0


def rollout_queue(redis: Redis) -> Queue:
    """The queue, as its producers and its consumers must open it alike."""
    return Queue(redis, QUEUE, lease_s=LEASE_S, backoff_s=0.2, result_ttl_s=RESULT_TTL_S)


def task_id(task: pb.RolloutTask) -> str:
    """The same question to the same weights has one id, wherever the weights lie, so that it is
    answered once."""
    bare = pb.RolloutTask()
    bare.CopyFrom(task)
    bare.policy.ClearField("folder")
    content = sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:32]
    return f"{task.policy.run_id}.{task.policy.revision}.{task.group}.{content}"
