"""An installation with something of everything, made by the platform's own code, and what of it
matters: for tests of backup and restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from plinth.cluster.backup.making import Made, back_up
from plinth.cluster.backup.restoring import Restored, restore
from plinth.coordinator.preferences.collection import Collection
from plinth.coordinator.results import StepResults
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import StepOutcome
from plinth.gateway.keys.api_keys import KeyStore
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.internal.v1 import job_records_pb2, preference_records_pb2, run_records_pb2
from plinth.shared.canary import Canaries
from plinth.shared.queue import Queue
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore
from plinth.trainer.records import JobRecords


def settings_of(data: Path, redis_url: str | None) -> Settings:
    external = {} if redis_url is None else {"redis_url": redis_url}
    return load_settings(data_dir=data, gateway__port=0, gateway__grpc_port=0, **external)


def quiet(_: str, __: int, ___: int) -> None:
    """Progress that nobody watches."""


def make(settings: Settings, place: Path | str) -> Made:
    return back_up(settings, str(place), quiet)


def put_back(settings: Settings, place: Path | str, **how: Any) -> Restored:
    return restore(settings, str(place), quiet, **how)


def publish(store: ArtifactStore, work: Path, name: str, content: str, **more: Any) -> str:
    """A model of two files, one of them deep down."""
    source = work / f"source-{name}"
    (source / "deep" / "er").mkdir(parents=True, exist_ok=True)
    (source / "config.json").write_text(json.dumps({"name": name, "content": content}))
    (source / "deep" / "er" / "weights.bin").write_bytes(content.encode() * 5000)
    return store.publish(name, "model", source, **more).ref


async def furnish(settings: Settings, redis: Redis, work: Path) -> str:
    """Something of every family, by the code that owns it; the API key that was made."""
    store = ArtifactStore(settings.store())
    base = publish(store, work, "base", "first")
    chat = publish(store, work, "chat", "first", parents=[base], input_digest="sha256:aa")
    publish(store, work, "chat", "second", parents=[base])
    store.set_alias("chat", "prod", 1)
    store.set_alias("chat", "prod", 2)
    DeploymentRecords(store).put(internal.DeploymentRecord(name="chat", artifact=chat, shards=2))
    outcome = StepOutcome(chat, {"loss": 1.5}, reused=False)
    StepResults(store).publish("sha256:ab", outcome, fence=3, origin={"run": "r1", "step": "s"})
    plain, _ = await KeyStore(redis).create("acme", {"inference"}, "a label")
    queue = Queue(redis, "trainer-jobs", lease_s=60)
    for id in ("waits", "is-held", "failed"):
        await queue.add(id, b"\x00spec\xff" * 100)
    lease = await queue.claim("worker", wait_s=1)
    assert lease is not None
    await queue.complete(lease, b"result")
    lease = await queue.claim("worker", wait_s=1)
    assert lease is not None
    lease = await queue.claim("worker", wait_s=1)
    assert lease is not None
    await queue.fail(lease, "no corpus", retry=False)
    await JobRecords(redis).create(job_records_pb2.JobRecord(job_id="is-held", submitted_unix_ms=5))
    await RunRecords(redis).submit(run_records_pb2.RunRecord(run_id="r1", pipeline_yaml="name: x"))
    task = preference_records_pb2.PreferenceTaskRecord(task_id="t1", wanted=1)
    await Collection(redis, "live").create(task)
    await Canaries(redis).open("chat", "r1", stable="chat@1", canary="chat@2", share=0.1)
    return plain


def store_told(store: ArtifactStore) -> dict[str, Any]:
    """What matters of a store, by its own reading: every artifact, verified, with its aliases."""
    found: dict[str, Any] = {}
    for record in store.list():
        store.verify(record)
        aliases = store.aliases(record.name)
        found[record.ref] = (record.digest, record.created_unix_ms, record.manifest, aliases)
    wanted = {d.name: d.SerializeToString() for d in DeploymentRecords(store).list()}
    return {"artifacts": found, "deployments": wanted}
