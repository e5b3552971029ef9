"""Served models are desired state: this makes Ray Serve match the records on the store.

A statically configured Serve application itself. One application per served model
(`inference-<name>`), one replica per shard. It needs the store and Ray; Redis may be away. It
announces what it sees as the field "models" of its registry entry.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plinth.cluster.layout import StageSpec
from plinth.cluster.serving import Applier, Served, states
from plinth.internal.v1 import deployments_pb2
from plinth.shared.errors import Internal, described
from plinth.shared.records import DeploymentRecords
from plinth.shared.rpc.server import GrpcService
from plinth.shared.stage import StageContext, StageFront
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import gauge, get_logger

INFERENCE = "inference"
PREFIX = f"{INFERENCE}-"
PERIOD_S = 1.0
REMOTE_PERIOD_S = 5.0  # a listing of an object store costs money
SETTLED_LOOK_S = 10.0  # how often Serve is asked while nothing changes
STALLED_S = 180.0
SHARD_CPUS = 0.1  # logical: a laptop's shards share its cores
_WANTED = gauge(
    "model_shards_wanted",
    "Shards that a deployment asks for; where their number follows their load, asks for now.",
    ["model"],
)
_READY = gauge("model_shards_ready", "Shards of a deployment that Serve runs.", ["model"])
_STAGE_WANTED = gauge(
    "stage_replicas_wanted",
    "Replicas that Ray Serve wants of a stage now: as many as it needs pods.",
    ["stage"],
)
_PASSED = gauge(
    "reconciler_passed_timestamp_seconds",
    "When store and Serve were last compared, in Unix time.",
)


def build(context: StageContext, *, shard: Mapping[str, Any]) -> StageFront:
    """`shard`: the StageSpec of an inference shard as a mapping, to be filled in per model."""
    return ReconcilerFront(context, StageSpec(**shard))


class ReconcilerFront:
    """The loop: read what is wanted, look at what is served, apply the difference."""

    stage = "reconciler"

    def __init__(self, context: StageContext, shard: StageSpec) -> None:
        self._records = DeploymentRecords(context.store)
        self._shard = shard
        local = context.settings.store().startswith("file://")
        self._period_s = PERIOD_S if local else REMOTE_PERIOD_S
        # A replica that asks Ray for no GPU sees none.
        self._gpus = 1.0 if context.settings.engine.device.startswith("cuda") else 0.0
        self._scaling = context.settings.scaling
        self._log = get_logger("plinth.cluster.reconciler")
        self._applier = Applier()
        self._seen: list[dict[str, Any]] = []
        self._told_of: set[str] = set()
        self._stages: dict[str, int] = {}
        self._settled = asyncio.Event()
        self._passed = time.monotonic()
        self._wanted: dict[str, deployments_pb2.DeploymentRecord] = {}
        self._looked = 0.0
        self._task: asyncio.Task[None] | None = None

    def services(self) -> Sequence[GrpcService]:
        return ()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reconciler")

    async def settled(self) -> None:
        """Returns when all that is wanted has been served once."""
        await self._settled.wait()

    async def check(self) -> None:
        if self._task is None or self._task.done():
            raise Internal("the reconciler's loop has ended")
        if time.monotonic() - self._passed > STALLED_S:
            raise Internal(f"the reconciler has made no pass for {STALLED_S:.0f} s")

    def announcement(self) -> dict[str, str]:
        """models: as `_told`; stages: replicas that Serve wants of each now, by its name."""
        return {"models": json.dumps(self._seen), "stages": json.dumps(self._stages)}

    async def drain(self, grace_s: float) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)

    async def _run(self) -> None:
        while True:
            try:
                self._seen = await asyncio.to_thread(self._pass)
            except Exception as error:  # noqa: BLE001  (store or Serve away: the next pass sees)
                self._log.warning("pass failed", error=described(error))
            else:
                self._passed = time.monotonic()
                self._tell()
                if self._all_ready():
                    self._settled.set()
            await asyncio.sleep(self._period_s)

    def _pass(self) -> list[dict[str, Any]]:
        # 1. What is wanted, and what is there.
        damaged: list[str] = []  # what is there of these stays as it is
        wanted = {PREFIX + d.name: d for d in self._records.list(damaged.append)}
        for name in damaged:
            self._log.error("a deployment's record is damaged", deployment=name)
        kept = {PREFIX + name for name in damaged}
        still = wanted == self._wanted and self._all_ready()
        if still and time.monotonic() - self._looked < SETTLED_LOOK_S:
            return self._seen
        now = states()
        self._wanted, self._looked = wanted, time.monotonic()
        self._stages = _by_stage(now)
        # 2. The difference.
        self._applier.apply([self._spec(d) for d in wanted.values()], now)
        self._applier.remove(
            name
            for name, served in now.items()
            if name.startswith(PREFIX)
            and name not in wanted
            and name not in kept
            and served.state != "stopping"
        )
        # 3. What to tell.
        return [self._told(d, now.get(name, Served("starting"))) for name, d in wanted.items()]

    def _tell(self) -> None:
        """To Prometheus; a model that is wanted no more is not talked of."""
        _PASSED.set_to_current_time()
        now = {model["name"] for model in self._seen}
        for name in self._told_of - now:
            _WANTED.remove_by_labels({"model": name})
            _READY.remove_by_labels({"model": name})
        self._told_of = now
        for stage, replicas in self._stages.items():
            _STAGE_WANTED.labels(stage).set(replicas)
        for model in self._seen:
            _WANTED.labels(model["name"]).set(model["shards"])
            _READY.labels(model["name"]).set(model["ready"])

    def _all_ready(self) -> bool:
        return all(model["state"] == "ready" for model in self._seen)

    def _spec(self, wanted: deployments_pb2.DeploymentRecord) -> StageSpec:
        options: dict[str, Any] = {"model": wanted.name, "artifact": wanted.artifact}
        if wanted.speculation:
            options["speculation"] = wanted.speculation
        if wanted.kv_cache_bytes:
            options["kv_cache_bytes"] = wanted.kv_cache_bytes
        return replace(
            self._shard,
            name=PREFIX + wanted.name,
            options={**self._shard.options, **options},
            replicas=wanted.shards,
            max_replicas=wanted.max_shards,
            load_over_s=self._scaling.over_s,
            down_after_s=self._scaling.down_after_s,
            cpus=wanted.cpus_per_shard or SHARD_CPUS,
            gpus=wanted.gpus_per_shard or self._gpus,
        )

    @staticmethod
    def _told(wanted: deployments_pb2.DeploymentRecord, served: Served) -> dict[str, Any]:
        return {
            "name": wanted.name,
            "artifact": wanted.artifact,
            "shards": served.wanted or wanted.shards,
            "min_shards": wanted.shards,
            "max_shards": max(wanted.shards, wanted.max_shards),
            "ready": served.replicas,
            "state": served.state,
            "detail": served.detail[-400:],
        }


def _by_stage(now: Mapping[str, Served]) -> dict[str, int]:
    """Replicas wanted by stage; all models' shards together, also when there are none."""
    wanted = {INFERENCE: 0}
    for name, served in now.items():
        stage = INFERENCE if name.startswith(PREFIX) else name
        wanted[stage] = wanted.get(stage, 0) + served.wanted
    return wanted
