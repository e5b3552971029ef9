"""A run ends with words whatever goes wrong in a step, and its loop waits for no file."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator_replica import Coordinator, states, steps, until
from patience import PATIENCE_S
from plinth.coordinator.steps import data
from plinth.coordinator.steps.data import DataStep
from plinth.coordinator.steps.prompts import PromptsStep
from plinth.shared.errors import PermissionDenied
from plinth.shared.source_roots import SourceRoots
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    return folder


def reading(folder: Path) -> str:
    return f"{{name: d, steps: {{corpus: {{kind: data, corpus_dir: {folder}}}}}}}"


def asking(file: Path) -> str:
    return f"{{name: d, steps: {{asks: {{kind: prompts, file: {file}, held_out: 1}}}}}}"


async def failed(coordinator: Coordinator, text: str) -> str:
    await coordinator.submit("r1", text)
    run = await coordinator.end("r1")
    assert run.status.state == pb.RUN_STATE_FAILED
    assert states(run) == ["FAILED"]
    return str(run.status.error)


def denied(path: object) -> PermissionError:
    return PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("kind", ["data", "prompts", "prompts, later"])
async def test_a_file_that_cannot_be_read_is_named(
    world: World, coordinator: Coordinator, texts: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Before a step, for its digest, or in it."""
    file = texts / "a.txt"
    real = Path.open

    def deny(path: Path, *given: Any, **more: Any) -> Any:
        if path == file:
            raise denied(path)
        return real(path, *given, **more)

    monkeypatch.setattr(Path, "open", deny)
    if kind == "prompts, later":
        monkeypatch.setattr(PromptsStep, "surroundings", lambda *_: {})
    error = await failed(coordinator, reading(texts) if kind == "data" else asking(file))
    assert f"{file}: Permission denied" in error
    assert "make the file readable" in error


@pytest.mark.parametrize("moment", ["surroundings", "execute", "abandon"])
async def test_a_fault_of_the_code_ends_the_step_too(
    world: World, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What nobody thought of is no reason to begin again and again, without a word."""
    cancelled: list[str] = []

    def broken(*_: Any) -> Any:
        raise KeyError("nobody thought of it")

    async def run_wild(*_: Any) -> AsyncIterator[Any]:
        broken()
        yield

    async def abandon(self: DataStep, work: Any, _: Any) -> None:
        cancelled.append(work.step)
        if moment == "abandon":
            broken()

    if moment == "surroundings":
        monkeypatch.setattr(DataStep, "surroundings", broken)
    else:
        monkeypatch.setattr(DataStep, "execute", run_wild)
    monkeypatch.setattr(DataStep, "abandon", abandon)
    error = await failed(coordinator, "{name: d, steps: {corpus: {kind: data, builtin: stdlib}}}")
    assert error == "corpus: internal error: KeyError; the coordinator's log has it"
    assert cancelled == ([] if moment == "surroundings" else ["corpus"])


class SlowDisk:
    """Reading a file's content begins, and ends when `gate` is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.reads = 0

    def __call__(self, path: Path) -> str:
        self.reads += 1
        assert self.gate.wait(PATIENCE_S)
        return path.read_text()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(data, "file_digest", disk)
    yield disk
    disk.gate.set()


async def test_a_corpus_that_is_read_keeps_nothing_else_waiting(
    world: World, coordinator: Coordinator, texts: Path, disk: SlowDisk
) -> None:
    text = f"""
name: d
steps:
  large: {{kind: data, corpus_dir: {texts}}}
  small: {{kind: data, builtin: stdlib}}
  vocabulary: {{kind: tokenizer, corpus: $small, vocab_size: 300}}
"""
    await coordinator.submit("r1", text)
    await until(lambda: disk.reads)
    run = await coordinator.reached("r1", "vocabulary", pb.STEP_STATE_SUCCEEDED)
    assert steps(run)["large"].state == pb.STEP_STATE_PENDING
    await coordinator.cancel("r1")
    run = await coordinator.end("r1")
    assert run.status.state == pb.RUN_STATE_CANCELLED
    assert not disk.gate.is_set()


async def test_what_was_read_before_a_pause_is_read_again(
    world: World, coordinator: Coordinator, texts: Path, disk: SlowDisk
) -> None:
    """Else what is made after it would be recorded as made from what was there before."""
    await coordinator.submit("r1", reading(texts))
    await until(lambda: disk.reads)
    await coordinator.pause("r1")
    disk.gate.set()
    (texts / "a.txt").write_text("other")
    await coordinator.resume("r1")
    assert states(await coordinator.end("r1")) == ["SUCCEEDED"]
    await coordinator.submit("r2", reading(texts))
    assert states(await coordinator.end("r2")) == ["REUSED"]
    (texts / "a.txt").write_text("one")
    await coordinator.submit("r3", reading(texts))
    assert states(await coordinator.end("r3")) == ["SUCCEEDED"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_out_of_the_roots_is_not_followed(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Neither read nor looked into, for the digest: the trainer would refuse it as well."""
    (tmp_path / "secret").mkdir()
    secret = tmp_path / "secret" / "secret.txt"
    secret.write_text("s")
    (texts / "b.txt").symlink_to(secret if what == "file" else secret.parent)
    read: list[Path] = []
    monkeypatch.setattr(data, "file_digest", lambda path: read.append(path.resolve()) or "")
    spec = data.DataSpec(kind="data", corpus_dir=str(texts))
    with pytest.raises(PermissionDenied, match=r"b\.txt' lies in no folder"):
        DataStep().surroundings(spec, "r1", SourceRoots([texts]))
    assert secret not in read
