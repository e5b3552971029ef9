"""Backup, everything lost, restore: what matters is the same. And all that is refused."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import trainings
from backups import furnish, make, publish, put_back, quiet, settings_of, store_told
from patience import PATIENCE_S
from plinth.cluster.backup import checkpoints as job_checkpoints
from plinth.cluster.backup import restoring, store_copy
from plinth.cluster.backup.archive import Archive
from plinth.cluster.backup.restoring import check
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.cluster.layout import Layout
from plinth.cluster.supervisor import take_lock
from plinth.coordinator.results import StepResults
from plinth.coordinator.runs import RunRecords
from plinth.gateway.keys.api_keys import KeyStore
from plinth.internal.v1 import job_records_pb2
from plinth.shared import local_storage, redis_keys
from plinth.shared.connection import connect
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
)
from plinth.shared.queue import Queue
from plinth.shared.registry import Registry
from plinth.shared.settings import Settings
from plinth.shared.storage_url import open_storage
from plinth.shared.store import ArtifactStore
from plinth.trainer.attempts import Attempt
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.data.shards import Split
from plinth.trainer.records import JobRecords


@pytest.fixture
def home(tmp_path: Path, redis_server: str, redis_client: Redis) -> Settings:
    """An installation on the session's Redis, emptied."""
    return settings_of(tmp_path / "data", redis_server)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def found(place: Path, pattern: str) -> Path:
    return next(place.glob(pattern))


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


async def test_everything_is_lost_in_between(
    home: Settings, place: Path, redis_client: Redis, tmp_path: Path
) -> None:
    key = await furnish(home, redis_client, tmp_path)
    before = store_told(ArtifactStore(home.store()))
    assert len(before["artifacts"]) == 3
    dead = await Queue(redis_client, "trainer-jobs").dead_letters()
    made = await asyncio.to_thread(make, home, place)
    assert (made.artifacts, made.copied, made.backup.manifest["redis_keys"]["runs"]) == (3, 3, 1)

    shutil.rmtree(home.data_dir)
    await redis_client.flushall()
    restored = await asyncio.to_thread(put_back, home, place)
    assert (restored.artifacts, restored.copied) == (3, 3)

    store = ArtifactStore(home.store())
    assert store_told(store) == before
    assert store.get("chat:prod").version == 2
    result = StepResults(store).find("sha256:ab")
    assert result is not None and result.output == "chat@1"
    assert (await KeyStore(redis_client).principal(key)).tenant == "acme"
    queue = Queue(redis_client, "trainer-jobs", lease_s=60)
    assert await queue.result("waits") == b"result"
    assert await queue.dead_letters() == dead
    assert not await queue.add("waits", b"again")  # what was done is remembered
    heir = await queue.claim("heir", wait_s=1)
    assert heir is not None
    assert (heir.id, heir.payload, heir.attempts) == ("is-held", b"\x00spec\xff" * 100, 1)
    job = await JobRecords(redis_client).get("is-held")
    assert job.submitted_unix_ms == 5
    assert (await RunRecords(redis_client).get("r1")).pipeline_yaml == "name: x"
    assert await redis_client.get(redis_keys.SCHEMA_MARK) == b"1"
    assert await redis_client.get(redis_keys.RESTORING_MARK) is None


async def test_the_next_backup_copies_what_is_new(
    home: Settings, place: Path, redis_client: Redis, tmp_path: Path
) -> None:
    store = ArtifactStore(home.store())
    publish(store, tmp_path, "chat", "first")
    first = await asyncio.to_thread(make, home, place)
    assert first.copied == 1
    before = files_of(place / "contents")
    again = await asyncio.to_thread(make, home, place)
    assert (again.copied, again.copied_bytes) == (0, 0)
    assert files_of(place / "contents") == before
    publish(store, tmp_path, "chat", "second")
    third = await asyncio.to_thread(make, home, place)
    assert (third.copied, third.artifacts) == (1, 2)
    # Each of them is a whole backup of its moment.
    for backup, count in ((first, 1), (third, 2)):
        other = settings_of(tmp_path / f"other-{count}", home.redis_url.get_secret_value())  # type: ignore[union-attr]
        await redis_client.flushall()
        done = await asyncio.to_thread(put_back, other, place, backup_id=backup.backup.id)
        assert done.artifacts == count
        assert len(ArtifactStore(other.store()).list()) == count


async def test_what_was_deleted_does_not_come_back(
    home: Settings, place: Path, redis_client: Redis, tmp_path: Path
) -> None:
    store = ArtifactStore(home.store())
    for text in ("first", "second", "third"):
        publish(store, tmp_path, "chat", text)
    store.delete("chat@3", lambda _: ())
    store.delete("chat@1", lambda _: ())
    made = await asyncio.to_thread(make, home, place)
    assert (made.artifacts, made.copied) == (1, 1)
    shutil.rmtree(home.data_dir)
    await redis_client.flushall()
    await asyncio.to_thread(put_back, home, place)
    restored = ArtifactStore(home.store())
    assert [one.ref for one in restored.list()] == ["chat@2"]
    assert publish(restored, tmp_path, "chat", "fourth") == "chat@4", "numbers stay taken"


async def test_to_a_bucket_and_back(
    home: Settings, redis_client: Redis, tmp_path: Path, bucket: str
) -> None:
    """An object store on both sides."""
    remote = home.model_copy(update={"store_url": f"{bucket}/store"})
    key = await furnish(remote, redis_client, tmp_path)
    before = store_told(ArtifactStore(remote.store()))
    await asyncio.to_thread(make, remote, f"{bucket}/away")
    open_storage(bucket).remove_tree("store")
    await redis_client.flushall()
    await asyncio.to_thread(put_back, remote, f"{bucket}/away")
    assert store_told(ArtifactStore(remote.store())) == before
    assert (await KeyStore(redis_client).principal(key)).tenant == "acme"


async def test_a_version_and_what_names_it_come_while_the_store_is_listed(
    home: Settings, place: Path, redis_client: Redis, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At each listing of a folder somebody publishes a model, its child, and an alias to it. What
    is in the backup names only what is in it too."""
    store = ArtifactStore(home.store())
    publish(store, tmp_path, "a", "0")
    publish(store, tmp_path, "z", "0")
    storage = store.storage
    listed = type(storage).names
    count = 0

    def names(self: Any, path: str) -> list[str]:
        nonlocal count
        answer = listed(self, path)
        if count < 12 and "versions" in path:
            count += 1
            parent = publish(store, tmp_path, "z", f"{count}")
            child = publish(store, tmp_path, "a", f"{count}", parents=[parent])
            grandchild = publish(store, tmp_path, "z", f"{count}+", parents=[child])
            store.set_alias("z", "prod", int(grandchild.partition("@")[2]))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "names", names)
        await asyncio.to_thread(make, home, place)
    assert count == 12
    shutil.rmtree(home.data_dir)
    await redis_client.flushall()
    await asyncio.to_thread(put_back, home, place)
    restored = ArtifactStore(home.store())
    refs = {record.ref for record in restored.list()}
    for record in restored.list():
        assert set(record.parents) <= refs, record.ref
    for alias, version in restored.aliases("z").items():
        assert f"z@{version}" in refs, alias


@pytest.mark.parametrize("attempts", [("attempt-7", "attempt-9"), (".", "attempt-3")])
async def test_checkpoints_of_open_jobs_come_back(
    home: Settings, place: Path, redis_client: Redis, attempts: tuple[str, str]
) -> None:
    folder = home.data_dir / "jobs" / "job-1" / "checkpoints"  # where the next attempt looks
    for step, attempt in zip((100, 200), attempts, strict=True):
        one = folder.parent / attempt / "checkpoints" / f"step-{step:08d}"
        one.mkdir(parents=True)
        (one / "state.json").write_text(json.dumps({"step": step}))
        (one / "model.safetensors").write_bytes(b"w" * step)
        (one.parent / ".writing-00000300").mkdir()
    await JobRecords(redis_client).create(job_records_pb2.JobRecord(job_id="job-1"))
    made = await asyncio.to_thread(make, home, place)
    assert made.checkpoints == 1
    assert (await asyncio.to_thread(make, home, place)).copied_bytes == 0
    shutil.rmtree(home.data_dir)
    await redis_client.flushall()
    await asyncio.to_thread(put_back, home, place)
    assert [path.name for path in folder.iterdir()] == ["step-00000200"]
    assert (folder / "step-00000200" / "model.safetensors").read_bytes() == b"w" * 200


@pytest.mark.parametrize("given_up", [False, True])
def test_a_job_goes_on_after_a_restore_as_it_would_have(tmp_path: Path, given_up: bool) -> None:
    """From its own checkpoint; and from another's of the same inputs, that ended without a
    result."""

    class Config:
        def digest(self) -> str:
            return "sha256:c"

    def goes_on(jobs: Path, job: str, inputs: str) -> list[str]:
        attempt = Attempt(jobs, job, 7)
        attempt.begin()
        attempt.take_over(inputs, Config())  # type: ignore[arg-type]
        return [one.name for one in checkpoints(attempt.folder.checkpoints)]

    jobs = tmp_path / "a" / "jobs"
    first = Attempt(jobs, "r1.train", 3)
    first.begin()
    first.take_over("sha256:in", Config())  # type: ignore[arg-type]
    step = first.folder.checkpoints / "step-00000010"
    step.mkdir(parents=True)
    (step / "state.json").write_text(json.dumps({"config_digest": "sha256:c"}))
    if given_up:
        first.give_up()
    archive = Archive((tmp_path / "archive").as_uri())
    found, _ = job_checkpoints.copy_out(tmp_path / "a", archive)
    found = [job_checkpoints.Checkpoint.from_json(one.to_json()) for one in found]
    for home, job in (("own", "r1.train"), ("other", "r2.train")):
        job_checkpoints.copy_back(found, archive, tmp_path / home)
        assert job_checkpoints.copy_back(found, archive, tmp_path / home) == 0
        wanted = ["step-00000010"] if given_up or home == "own" else []
        assert goes_on(tmp_path / home / "jobs", job, "sha256:in") == wanted
        left = [*(tmp_path / home).rglob("given-up")]
        assert left == []  # it is this job's now
    job_checkpoints.copy_back(found, archive, tmp_path / "changed")
    assert goes_on(tmp_path / "changed" / "jobs", "r2.train", "sha256:else") == []


def test_the_embedded_redis_is_started_for_it(tmp_path: Path, place: Path) -> None:
    """Neither side's stack runs; two data directories, two servers."""
    here, there = settings_of(tmp_path / "a", None), settings_of(tmp_path / "b", None)
    server = EmbeddedRedis(here.data_dir)
    url = server.start()

    async def furnished() -> str:
        client = connect(url)
        try:
            return await furnish(here, client, tmp_path)
        finally:
            await client.aclose()

    key = asyncio.run(furnished())
    server.stop()
    made = make(here, place)
    assert made.keys > 5
    shutil.rmtree(here.data_dir)
    put_back(there, place)

    async def tenant(url: str) -> str:
        client = connect(url)
        try:
            return (await KeyStore(client).principal(key)).tenant
        finally:
            await client.aclose()

    heir = EmbeddedRedis(there.data_dir)
    assert asyncio.run(tenant(heir.start())) == "acme"
    heir.stop()
    assert store_told(ArtifactStore(there.store()))["artifacts"]


# -- what is refused -----------------------------------------------------------------------------


@pytest.fixture
async def backed_up(home: Settings, place: Path, redis_client: Redis, tmp_path: Path) -> Settings:
    await furnish(home, redis_client, tmp_path)
    await asyncio.to_thread(make, home, place)
    return home


@pytest.fixture
async def lost(backed_up: Settings, redis_client: Redis) -> Settings:
    shutil.rmtree(backed_up.data_dir)
    await redis_client.flushall()
    return backed_up


async def refused(home: Settings, place: Path, **how: Any) -> PlinthError:
    with pytest.raises(PlinthError) as caught:
        await asyncio.to_thread(put_back, home, place, **how)
    return caught.value


async def test_a_target_that_is_not_empty(
    backed_up: Settings, place: Path, redis_client: Redis, tmp_path: Path
) -> None:
    error = await refused(backed_up, place)
    assert error.reason == "TARGET_NOT_EMPTY" and "--replace-redis" in error.message
    # The store holds just what the backup holds, which is no hindrance.
    await redis_client.hset(redis_keys.api_keys(), "later", "{}")
    await asyncio.to_thread(put_back, backed_up, place, replace_redis=True)
    assert not await redis_client.hexists(redis_keys.api_keys(), "later")
    # One artifact more is.
    store = ArtifactStore(backed_up.store())
    later = publish(store, tmp_path, "later", "x")
    error = await refused(backed_up, place, replace_redis=True)
    assert error.reason == "TARGET_NOT_EMPTY" and "artifacts/later/versions" in error.message
    await asyncio.to_thread(put_back, backed_up, place, replace_redis=True, merge_store=True)
    assert ArtifactStore(backed_up.store()).get(later)


async def test_a_store_with_another_history(
    lost: Settings, place: Path, tmp_path: Path, redis_client: Redis
) -> None:
    publish(ArtifactStore(lost.store()), tmp_path, "chat", "something else")
    error = await refused(lost, place, merge_store=True)
    assert isinstance(error, AlreadyExists) and "another history" in error.message
    assert await redis_client.dbsize() == 0


async def test_redis_alone_over_the_store_that_is_left(
    backed_up: Settings, place: Path, redis_client: Redis, tmp_path: Path
) -> None:
    publish(ArtifactStore(backed_up.store()), tmp_path, "later", "x")
    await redis_client.flushall()
    done = await asyncio.to_thread(put_back, backed_up, place, only="redis")
    assert done.copied == 0 and done.redis_records > 10
    # But not over one that lacks what it names.
    await redis_client.flushall()
    shutil.rmtree(backed_up.data_dir / "store" / "artifacts" / "chat" / "versions")
    error = await refused(backed_up, place, only="redis")
    assert error.reason == "STORE_INCOMPLETE"


async def test_the_store_alone_heals_what_is_damaged(
    backed_up: Settings, place: Path, redis_client: Redis
) -> None:
    store = ArtifactStore(backed_up.store())
    damaged = store.fetch("chat@1") / "deep" / "er" / "weights.bin"
    damaged.chmod(0o644)
    damaged.write_bytes(b"rotten")
    with pytest.raises(DataLoss):
        store.verify("chat@1")
    before = await redis_client.dbsize()
    done = await asyncio.to_thread(put_back, backed_up, place, only="store")
    assert done.copied == 1
    store.verify("chat@1")
    assert await redis_client.dbsize() == before


async def test_a_dataset_that_training_finds_damaged_is_restored_as_it_says(
    backed_up: Settings, place: Path, tmp_path: Path
) -> None:
    """To prepare it again gives what is there: it is the same content of the same inputs."""
    store = ArtifactStore(backed_up.store())
    made = trainings.dataset(tmp_path / "made", trainings.texts(5))
    dataset = store.publish("tokens", "dataset", made, input_digest="sha256:0")
    await asyncio.to_thread(make, backed_up, place)
    damaged = next(store.fetch(dataset).glob("train-*.bin"))
    damaged.chmod(0o644)
    damaged.write_bytes(b"rotten")
    again = store.publish("tokens", "dataset", made, input_digest="sha256:0")
    with pytest.raises(DataLoss) as caught:
        Split(store.fetch(again), "train")
    said = re.search(r"`plinth restore PLACE --only (\w+) --merge-store`", caught.value.message)
    assert said is not None
    await asyncio.to_thread(put_back, backed_up, place, only=said[1], merge_store=True)
    assert Split(store.fetch(dataset), "train").documents


async def test_a_damaged_artifact_makes_no_backup(
    backed_up: Settings, place: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(backed_up.store())
    publish(store, tmp_path, "chat", "third")
    damaged = store.fetch("chat@3") / "config.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    backups = list((place / "backups").iterdir())
    with pytest.raises(DataLoss, match=r"config\.json is not what was published"):
        await asyncio.to_thread(make, backed_up, place)
    assert list((place / "backups").iterdir()) == backups


@pytest.mark.parametrize("what", ["redis.jsonl.gz", "store.jsonl.gz", "weights.bin", "missing"])
async def test_a_digest_that_does_not_match(
    lost: Settings, place: Path, redis_client: Redis, what: str
) -> None:
    victim = found(place, f"**/{'weights.bin' if what == 'missing' else what}")
    victim.chmod(0o644)
    if what == "missing":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    with pytest.raises(DataLoss) as caught:
        await asyncio.to_thread(check, str(place), quiet)
    assert str(victim.name) in caught.value.message
    error = await refused(lost, place)
    assert isinstance(error, DataLoss) and error.reason == "BACKUP_DAMAGED"
    # No state appears over a store that is not whole.
    assert not [k for k in await redis_client.keys("*") if k != redis_keys.RESTORING_MARK.encode()]
    assert ArtifactStore(lost.store()).list() == []


async def test_a_restore_that_broke_off_is_given_again(
    lost: Settings, place: Path, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plinth.shared.schema import claim_redis

    written = restoring.redis_state.put

    def breaks(client: Any, records: Iterator[Any], told: Any) -> int:
        some = [record for record, _ in zip(records, range(5), strict=False)]
        written(client, iter(some), told)
        raise ResourceExhausted("the machine burns")

    with monkeypatch.context() as patch:
        patch.setattr(restoring.redis_state, "put", breaks)
        assert "burns" in (await refused(lost, place)).message
    # No stage starts on it, no backup is made of it, and no other backup put into it …
    with pytest.raises(FailedPrecondition, match="broke off"):
        await claim_redis(redis_client, None)
    with pytest.raises(FailedPrecondition, match="half restored"):
        await asyncio.to_thread(make, lost, place)
    manifest = found(place, "backups/*/manifest.json")
    shutil.copytree(manifest.parent, manifest.parents[1] / "20990101T000000.000Z-00000000")
    other = await refused(lost, place)
    assert other.reason == "RESTORE_UNFINISHED" and manifest.parent.name in other.message
    # … but the same again goes to the end.
    done = await asyncio.to_thread(put_back, lost, place, backup_id=manifest.parent.name)
    assert done.artifacts == 3
    await claim_redis(redis_client, None)


async def test_a_running_platform(lost: Settings, place: Path, redis_client: Redis) -> None:
    await Registry(redis_client, ttl_s=PATIENCE_S).announce("trainer", "t-1", "127.0.0.1:1", {})
    error = await refused(lost, place)
    assert error.reason == "STACK_RUNNING" and "trainer/t-1" in error.message
    await redis_client.flushall()
    with take_lock(Layout.of(lost)):
        error = await refused(lost, place)
    assert error.reason == "STACK_RUNNING" and "plinth down" in error.message


@pytest.mark.parametrize("field", ["key_schema", "store_schema", "plinth_schema"])
async def test_a_backup_of_a_newer_schema(lost: Settings, place: Path, field: str) -> None:
    manifest = found(place, "backups/*/manifest.json")
    value = json.loads(manifest.read_text())
    manifest.unlink()
    manifest.write_text(json.dumps({**value, field: 99}))
    error = await refused(lost, place)
    assert "99" in error.message and ("newer" in error.message or "upgrade" in error.message)


async def test_a_redis_of_a_newer_schema_is_not_restored_over(
    lost: Settings, place: Path, redis_client: Redis
) -> None:
    await redis_client.set(redis_keys.SCHEMA_MARK, redis_keys.SCHEMA + 1)
    error = await refused(lost, place, replace_redis=True)
    assert error.reason == "SCHEMA_TOO_NEW" and "Install that version again" in error.message
    with pytest.raises(FailedPrecondition, match="newer Plinth"):
        await asyncio.to_thread(make, lost, place)


async def test_a_half_written_backup_is_none(lost: Settings, place: Path) -> None:
    folder = found(place, "backups/*")
    (folder / "manifest.json").unlink()
    error = await refused(lost, place)
    assert isinstance(error, NotFound) and "1 that were never finished" in error.message
    error = await refused(lost, place, backup_id=folder.name)
    assert "no finished backup" in error.message


async def test_places_that_make_no_sense(home: Settings, tmp_path: Path) -> None:
    for bad, words in (
        (home.data_dir / "backups", "would be lost with it"),
        (home.data_dir / "store", "would be lost with it"),
        ("", "name a folder"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await asyncio.to_thread(make, home, bad)
    away = home.model_copy(update={"store_url": (tmp_path / "store").as_uri()})
    with pytest.raises(InvalidArgument, match="the store itself"):
        await asyncio.to_thread(make, away, tmp_path / "store")
    with pytest.raises(FailedPrecondition, match="exclusively"):
        await asyncio.to_thread(make, home, "ftp://host/x")
    error = await refused(home, tmp_path / "nowhere")
    assert isinstance(error, NotFound) and not (tmp_path / "nowhere").exists()
    never = settings_of(tmp_path / "never", None)
    with pytest.raises(NotFound, match="no stack was ever started"):
        await asyncio.to_thread(make, never, tmp_path / "b")


async def test_what_lies_in_a_backup_is_its_owners(backed_up: Settings, place: Path) -> None:
    assert stat.S_IMODE(os.stat(place).st_mode) == 0o700  # noqa: PTH116
    token = backed_up.ensure_secrets_dir() / "cluster-token"
    token.write_text("the token that no backup may hold")
    await asyncio.to_thread(make, backed_up, place)
    for path in files_of(place):
        assert b"the token that no backup" not in path.read_bytes()
    manifest = json.loads(found(place, "backups/*/manifest.json").read_text())
    assert "hashes" in manifest["secrets"] and "are not here" in manifest["secrets"]


# -- full and forbidden --------------------------------------------------------------------------


async def test_a_full_disk_at_any_write(
    backed_up: Settings, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a second backup: the first stays, and no half one is taken for one."""
    publish(ArtifactStore(backed_up.store()), tmp_path, "chat", "third")
    sync = local_storage._sync
    failures = 0
    for calls in range(40):
        left = calls

        def full(file: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        with monkeypatch.context() as patch:
            patch.setattr(local_storage, "_sync", full)
            try:
                await asyncio.to_thread(make, backed_up, place)
            except ResourceExhausted as error:
                failures += 1
                assert error.reason == "DISK_FULL"
            else:
                break
        assert Archive(str(place)).find(None).manifest["contents"] == 3
    assert failures > 5
    assert Archive(str(place)).find(None).manifest["contents"] == 4


async def test_a_redis_without_room(lost: Settings, place: Path, redis_client: Redis) -> None:
    used = (await redis_client.info("memory"))["used_memory"]
    before = (await redis_client.config_get("maxmemory"))["maxmemory"]
    await redis_client.config_set("maxmemory", used // 2)
    try:
        error = await refused(lost, place)
    finally:
        await redis_client.config_set("maxmemory", before)
    assert error.reason == "REDIS_MEMORY" and "maxmemory" in error.message


def test_a_read_only_redis(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "r")
    home = settings_of(tmp_path / "data", server.start())

    async def become_replica() -> None:
        client = connect(server.url)
        await client.set("x", "1")
        await client.replicaof("127.0.0.1", 1)
        await client.aclose()

    try:
        place = tmp_path / "b"
        make(home, place)
        asyncio.run(become_replica())
        with pytest.raises(FailedPrecondition, match="read-only replica"):
            put_back(home, place)
        with pytest.raises(FailedPrecondition, match="read-only replica"):
            make(home, place)
    finally:
        server.stop()


def test_a_listing_that_was_tampered_with_names_no_other_file(tmp_path: Path) -> None:
    import gzip
    import io

    for path in ("../etc/cron.d/x", "secrets/api-key", "artifacts/a/content/x"):
        line = json.dumps({"record": path, "data": '{"plinth_schema": 1}'})
        with pytest.raises(PlinthError):
            store_copy.unpack(io.BytesIO(gzip.compress(line.encode() + b"\n")))


@pytest.mark.parametrize("own", [None, "team-a/plinth"])
async def test_a_redis_of_another_release_is_not_restored_over(
    lost: Settings, place: Path, redis_client: Redis, own: str | None
) -> None:
    """It may be stopped, and its keys are all that it has."""
    await redis_client.set(redis_keys.RELEASE_MARK, "team-b/plinth")
    await redis_client.hset(redis_keys.api_keys(), "theirs", "{}")
    ours = lost.model_copy(update={"release": own})
    error = await refused(ours, place, replace_redis=True)
    assert error.reason == "REDIS_OF_ANOTHER_RELEASE" and "team-b/plinth" in error.message
    assert await redis_client.hexists(redis_keys.api_keys(), "theirs")
    theirs = lost.model_copy(update={"release": "team-b/plinth"})
    await asyncio.to_thread(put_back, theirs, place, replace_redis=True)
    assert not await redis_client.hexists(redis_keys.api_keys(), "theirs")
