"""`plinth backup --keep N`: what goes, what stays, and what a rival counts on."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from backups import furnish, make, publish, put_back, quiet, settings_of, store_told
from plinth.cli.main import _typer as app
from plinth.cluster.backup import marks, pruning, store_copy
from plinth.cluster.backup.archive import MANIFEST, REDIS_FILE, Archive, new_id
from plinth.cluster.backup.making import Made, back_up
from plinth.cluster.backup.restoring import check
from plinth.shared.errors import Aborted, DataLoss
from plinth.shared.local_storage import LocalStorage
from plinth.shared.manifest import canonical_json
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactStore


@pytest.fixture
async def home(tmp_path: Path, redis_server: str, redis_client: Redis) -> Settings:
    settings = settings_of(tmp_path / "data", redis_server)
    await furnish(settings, redis_client, tmp_path)
    return settings


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def keep(settings: Settings, place: Path | str, count: int) -> Made:
    return back_up(settings, str(place), quiet, keep=count)


def checkpoint(settings: Settings, step: int) -> None:
    """An open job's only checkpoint, so that the next backup names another content."""
    folder = settings.data_dir / "jobs" / "job-1" / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / f"step-{step:08d}").mkdir(parents=True)
    (folder / f"step-{step:08d}" / "state.json").write_text(f"{step}" * 1000)


def everything(place: Path) -> dict[str, bytes]:
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def checkpoints_of(archive: Archive) -> set[str]:
    return {name for name in archive.contents() if name.startswith("job-")}


def all_is_whole(place: Path | str) -> None:
    for backup in Archive(str(place)).finished():
        check(str(place), quiet, backup_id=backup.id)


def test_the_newest_stay_with_all_that_they_need(home: Settings, place: Path) -> None:
    made = []
    for step in range(1, 5):
        checkpoint(home, step)
        made.append(keep(home, place, 2))
    pruned = [one.pruned for one in made]
    assert [(p.kept, len(p.backups), p.contents) for p in pruned if p] == [
        (1, 0, 0),
        (2, 0, 0),
        (2, 1, 1),
        (2, 1, 1),
    ]
    assert pruned[3] and pruned[3].backups == [made[1].backup.id] and pruned[3].bytes == 1000
    archive = Archive(str(place))
    assert [one.id for one in archive.finished()] == [made[2].backup.id, made[3].backup.id]
    assert len(checkpoints_of(archive)) == 2
    assert archive.storage.names("running") == []
    all_is_whole(place)


async def test_in_a_bucket(home: Settings, redis_client: Redis, bucket: str) -> None:
    remote = home.model_copy(update={"store_url": f"{bucket}/store"})
    publish(ArtifactStore(remote.store()), home.data_dir, "chat", "in a bucket")
    before = store_told(ArtifactStore(remote.store()))
    for step in range(1, 4):
        checkpoint(home, step)
        last = await asyncio.to_thread(keep, remote, f"{bucket}/away", 1)
    archive = Archive(f"{bucket}/away")
    assert [one.id for one in archive.finished()] == [last.backup.id]
    assert len(checkpoints_of(archive)) == 1
    assert set(archive.storage.names("contents")) == archive.contents()
    assert archive.storage.names("backups") == [last.backup.id]
    ArtifactStore(remote.store()).storage.remove_tree("artifacts")
    await redis_client.flushall()
    shutil.rmtree(home.data_dir)
    await asyncio.to_thread(put_back, remote, f"{bucket}/away")
    assert store_told(ArtifactStore(remote.store())) == before


def test_contents_of_an_artifact_that_was_deleted(home: Settings, place: Path) -> None:
    """The older backup alone names it: it goes with that, and not before."""
    store = ArtifactStore(home.store())
    record = store.get(publish(store, home.data_dir, "mistake", "secret"))
    first = make(home, place)
    store.storage.remove_tree("artifacts/mistake")
    name = record.path.rpartition("/")[2]
    keep(home, place, 2)
    assert name in Archive(str(place)).contents()
    check(str(place), quiet, backup_id=first.backup.id)
    keep(home, place, 2)
    assert name not in Archive(str(place)).contents()
    assert not any(name in path for path in everything(place))
    all_is_whole(place)


def test_what_is_not_ours_stays(home: Settings, place: Path) -> None:
    checkpoint(home, 1)
    first = make(home, place)
    # Somebody keeps this one by another name.
    (place / "backups" / first.backup.id).rename(place / "backups" / "before-the-upgrade")
    for path in ("notes.txt", "backups/notes.txt", "contents/mine/x", "index/notes.json"):
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_text("mine")
    before = everything(place)
    checkpoint(home, 2)
    keep(home, place, 1)
    checkpoint(home, 3)
    last = keep(home, place, 1)
    assert last.pruned and (last.pruned.kept, last.pruned.contents) == (1, 1)
    after = everything(place)
    assert {path: after.get(path) for path in before} == before
    all_is_whole(place)
    assert Archive(str(place)).find(None).id == last.backup.id


def test_what_a_backup_that_broke_off_left_goes(home: Settings, place: Path) -> None:
    make(home, place)
    name = "0123456789abcdef-0123456789abcdef"
    left = place / "contents" / name / "fedcba9876543210"
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    twice = next((place / "contents").glob("*-*")) / "0000000000000000"
    twice.mkdir()
    keep(home, place, 1)
    assert not left.exists() and not twice.exists()
    all_is_whole(place)


def test_a_backup_without_a_manifest_goes_unless_it_is_made(home: Settings, place: Path) -> None:
    archive = Archive(str(place))
    broken, runs, renamed = new_id(), new_id(), "half-of-one"
    stale, later = "20200101T000000.000Z-00000000", "29990101T000000.000Z-00000000"
    for id in (broken, runs, renamed, stale, later):
        assert archive.storage.create(f"backups/{id}/{REDIS_FILE}", b"what people asked")
    archive.storage.create(f"running/{stale}.json", b"{}")
    with marks.running(archive, runs):
        made = keep(home, place, 1)
    assert made.pruned and made.pruned.broken_off == sorted([broken, stale])
    assert made.pruned.backups == [] and made.pruned.kept == 1
    left = sorted([runs, renamed, later, made.backup.id])
    assert archive.storage.names("backups") == left


def test_a_backup_that_ends_during_the_look_stays(
    home: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no manifest when it is listed, and no mark when marks are looked at."""
    archive = Archive(str(place))
    rival = new_id()
    archive.storage.create(f"backups/{rival}/{REDIS_FILE}", b"{}")

    def ends(*_: Any) -> list[str]:
        archive.storage.create(f"backups/{rival}/{MANIFEST}", b'{"plinth_schema": 1}')
        return []

    new = new_id()
    monkeypatch.setattr(pruning, "others", ends)
    assert pruning._broken_off(archive, new) == []


@pytest.mark.parametrize("what", ["content", "redis.jsonl.gz", "store.jsonl.gz of an older one"])
def test_nothing_goes_when_what_stays_is_damaged(
    home: Settings, place: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint(home, step)
        older = make(home, place)
    if what == "content":
        victim = next(place.glob("contents/*-*/*/config.json"))
    else:
        victim = place / "backups" / older.backup.id / what.partition(" ")[0]
    if what == "redis.jsonl.gz":
        finish = Archive.finish

        def finished(self: Archive, id: str, *rest: Any) -> Any:
            backup = finish(self, id, *rest)
            damage(place / "backups" / id / what)
            return backup

        monkeypatch.setattr(Archive, "finish", finished)
    else:
        damage(victim)
    before = everything(place)
    checkpoint(home, 3)
    with pytest.raises(DataLoss, match=victim.name) as told:
        keep(home, place, 2)
    assert what.endswith("one") or "Nothing older was deleted" in told.value.message
    after = everything(place)
    assert {path: after.get(path) for path in before} == before
    assert Archive(str(place)).storage.names("running") == []


def damage(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


# -- rivals ----------------------------------------------------------------------------------------


def test_contents_wait_for_a_backup_that_runs(home: Settings, place: Path) -> None:
    checkpoint(home, 1)
    make(home, place)
    checkpoint(home, 2)
    archive = Archive(str(place))
    rival = new_id()
    with marks.running(archive, rival):
        pruned = keep(home, place, 1).pruned
        assert pruned and pruned.waits_for == [rival]
        assert len(pruned.backups) == 1 and len(checkpoints_of(archive)) == 2
    pruned = keep(home, place, 1).pruned
    assert pruned and pruned.waits_for == [] and pruned.contents == 1
    assert len(checkpoints_of(archive)) == 1


def test_a_mark_of_a_backup_that_died_long_ago(home: Settings, place: Path) -> None:
    checkpoint(home, 1)
    make(home, place)
    checkpoint(home, 2)
    archive = Archive(str(place))
    dead = "20200101T000000.000Z-00000000"
    archive.storage.create(f"running/{dead}.json", canonical_json({"plinth_schema": 1}))
    pruned = keep(home, place, 1).pruned
    assert pruned and pruned.waits_for == [] and len(checkpoints_of(archive)) == 1


def test_contents_stay_while_their_backup_is_restored(
    home: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere, of a backup that is pruned as its first content is about to be copied."""
    store = ArtifactStore(home.store())
    mistake = publish(store, home.data_dir, "mistake", "only the first backup has it")
    first = make(home, place)
    store.storage.remove_tree("artifacts/mistake")
    copy_back = store_copy.copy_back
    kept: list[Made] = []

    def copies(*what: Any) -> tuple[int, int]:
        kept.append(keep(home, place, 1))
        return copy_back(*what)

    elsewhere = (home.data_dir.parent / "elsewhere").as_uri()
    other = home.model_copy(update={"store_url": elsewhere})
    with monkeypatch.context() as patch:
        patch.setattr(store_copy, "copy_back", copies)
        put_back(other, place, only="store")
    pruned = kept[0].pruned
    assert pruned and pruned.backups == [first.backup.id]
    assert len(pruned.waits_for) == 1 and pruned.contents == 0
    restored = ArtifactStore(elsewhere)
    restored.verify(restored.get(mistake))
    assert Archive(str(place)).storage.names("running") == []
    pruned = keep(home, place, 1).pruned
    assert pruned and pruned.contents == 1


class Rival:
    """A backup in a thread of its own, made as the first line of the index is about to go: it has
    looked what is there, and stands before its end until `end`."""

    def __init__(self, backs_up: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
        self._ready, self._gate = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=backs_up)
        self.ends_before_the_look = False
        finish, remove = Archive.finish, LocalStorage.remove

        def finishes(archive: Archive, *what: Any) -> Any:
            if threading.current_thread() is self._thread:
                self._ready.set()
                assert self._gate.wait(60)
            return finish(archive, *what)

        def removes(storage: LocalStorage, path: str) -> None:
            if path.startswith("index/") and not self._ready.is_set():
                self._thread.start()
                assert self._ready.wait(60)
                if self.ends_before_the_look:
                    self.end()
            remove(storage, path)

        patch.setattr(Archive, "finish", finishes)
        patch.setattr(LocalStorage, "remove", removes)

    def end(self) -> None:
        self._gate.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("early", [True, False])
def test_a_backup_that_begins_while_another_prunes(
    home: Settings, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """The rival counts on a content that no backup which stays names: it must be there when the
    rival ends, before or after the one that prunes."""
    checkpoint(home, 1)
    make(home, place)
    other = home.model_copy(update={"data_dir": tmp_path / "other", "store_url": home.store()})
    checkpoint(other, 1)
    checkpoint(home, 2)
    rival = Rival(lambda: make(other, place), monkeypatch)
    rival.ends_before_the_look = early
    pruned = keep(home, place, 1).pruned
    rival.end()
    assert pruned and len(pruned.waits_for) == 1 and pruned.contents == 0
    archive = Archive(str(place))
    assert len(archive.finished()) == 2 and len(checkpoints_of(archive)) == 2
    assert archive.storage.names("running") == []
    all_is_whole(place)


class Killed(BaseException):
    """What ends a process at any line, as Ctrl-C does."""


@pytest.fixture
def counted_on(home: Settings, place: Path, tmp_path: Path) -> Callable[[], Made]:
    """Two backups, of which the next `keep(…, 1)` drops a checkpoint that a rival counts on: the
    rival has looked what is there, and its call here makes its backup."""
    checkpoint(home, 1)
    make(home, place)
    other = home.model_copy(update={"data_dir": tmp_path / "other", "store_url": home.store()})
    checkpoint(other, 1)
    checkpoint(home, 2)
    return lambda: make(other, place)


def test_lines_come_back_when_pruning_breaks_off(
    home: Settings, place: Path, counted_on: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its last look who is there; the rival's backup finished just before the lines went."""
    others, remove = marks.others, LocalStorage.remove
    rivals: list[Made] = []

    def breaks_off(archive: Archive, own: str) -> list[str]:
        if rivals:
            raise Killed
        return others(archive, own)

    def removes(storage: LocalStorage, path: str) -> None:
        if path.startswith("index/") and not rivals:
            rivals.append(counted_on())
        remove(storage, path)

    monkeypatch.setattr(pruning, "others", breaks_off)
    monkeypatch.setattr(LocalStorage, "remove", removes)
    with pytest.raises(Killed):
        keep(home, place, 1)
    assert Archive(str(place)).storage.names(pruning.DROPPED) == []
    all_is_whole(place)


@pytest.mark.parametrize("whole", [True, False])
def test_who_prunes_next_puts_back_what_a_killed_one_dropped(
    home: Settings,
    place: Path,
    counted_on: Callable[[], Made],
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    """Where its files are whole. Where not, the line stays away, and the files stay."""
    remove = LocalStorage.remove
    rivals: list[Made] = []

    def removes(storage: LocalStorage, path: str) -> None:
        if path.startswith("index/") and not rivals:
            rivals.append(counted_on())
        remove(storage, path)

    def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "remove", removes)
        patch.setattr(pruning, "_attempts_without_a_line", dies)
        patch.setattr(pruning, "_put_back", dies)  # nothing of it runs any more
        with pytest.raises(Killed):
            keep(home, place, 1)
    archive = Archive(str(place))
    dropped = archive.storage.names(pruning.DROPPED)
    assert len(dropped) == 1 and len(checkpoints_of(archive)) == 1
    state = next((place / "contents" / dropped[0].removesuffix(".json")).glob("*/state.json"))
    if not whole:
        damage(state)
    pruned = keep(home, place, 2).pruned
    assert pruned and rivals[0].backup.id in {one.id for one in archive.finished()}
    assert state.exists()
    if whole:
        assert archive.storage.names(pruning.DROPPED) == []
        all_is_whole(place)
    else:
        assert archive.storage.names(pruning.DROPPED) == dropped
    # Once nobody needs it, all of it goes.
    keep(home, place, 1)
    assert not state.exists() and archive.storage.names(pruning.DROPPED) == []
    all_is_whole(place)


def test_files_of_a_needed_content_without_a_line_stay(home: Settings, place: Path) -> None:
    """Whatever took the line: the files are all that can be put back by hand."""
    checkpoint(home, 1)
    first = make(home, place)
    name = first.backup.manifest["checkpoints"][0]["content"]
    line = place / "index" / f"{name}.json"
    told = line.read_bytes()
    line.unlink()
    checkpoint(home, 2)
    keep(home, place, 2)
    line.write_bytes(told)
    all_is_whole(place)


def test_a_content_that_goes_under_a_backup(
    home: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, or since it ran longer than a mark counts: no backup names what isn't there."""
    make(home, place)
    copy_out = store_copy.copy_out

    def copies(*what: Any) -> tuple[int, int]:
        copied = copy_out(*what)
        next((place / "index").iterdir()).unlink()
        return copied

    monkeypatch.setattr(store_copy, "copy_out", copies)
    with pytest.raises(Aborted, match="1 contents were deleted"):
        make(home, place)
    assert len(Archive(str(place)).finished()) == 1


def test_the_command_tells_what_went(home: Settings, place: Path) -> None:
    checkpoint(home, 1)
    make(home, place)
    (place / "backups" / new_id()).mkdir()
    checkpoint(home, 2)
    ran = CliRunner().invoke(
        app,
        ["backup", str(place), "--data", str(home.data_dir), "--keep", "1"],
        env={"PLINTH_REDIS_URL": home.redis_url.get_secret_value()},  # type: ignore[union-attr]
    )
    assert ran.exit_code == 0, ran.output
    assert "1 backups are kept, 1 older ones deleted, and 1 contents" in ran.output
    assert "1 that were never finished are deleted" in ran.output
    assert CliRunner().invoke(app, ["backup", str(place), "--keep", "0"]).exit_code == 2
