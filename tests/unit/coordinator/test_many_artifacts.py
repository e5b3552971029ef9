"""Thousands of artifacts in pages: each once while others come and go, and memory flat."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact_calls import Caller
from plinth.shared import artifact_versions
from plinth.shared.manifest import SCHEMA
from plinth.v1 import artifacts_pb2 as pb

COUNT = 5000
FEW = 1000


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """5,000 artifacts of one content, their records written past the store: it brings each to the
    disk."""
    monkeypatch.setattr(artifact_versions, "_KEPT", 200 * 101)  # of some 200 records
    made = Caller((tmp_path / "store").as_uri())
    (tmp_path / "file").write_text("x")
    first = made.store.publish("a", "model", tmp_path / "file", config={"text": "x" * 2000})
    for number in range(COUNT - 1):
        add(tmp_path, f"m{number:05d}", first.path, first.digest)
    return made


def add(tmp_path: Path, name: str, content: str, digest: str) -> None:
    record = {
        "name": name,
        "version": 1,
        "kind": "model",
        "digest": digest,
        "input_digest": None,
        "content": content,
        "content_of": "a",
        "created_unix_ms": 1,
        "plinth_schema": SCHEMA,
    }
    folder = tmp_path / "store" / "artifacts" / name / "versions"
    folder.mkdir(parents=True)
    (folder / "00000001.json").write_text(json.dumps(record))


async def names(call: Caller, most: int, between: Iterator[None]) -> tuple[list[str], int]:
    """(names of so many artifacts by pages, bytes of memory at the peak). between: what happens
    from page to page."""
    found: list[str] = []
    request = pb.ListArtifactsRequest(page_size=500)
    tracemalloc.start()
    try:
        while len(found) < most:
            page = await call("ListArtifacts", request)
            found += [one.artifact_id for one in page.artifacts]
            if not (token := page.next_page_token):
                break
            request.page_token = token
            del page
            next(between)
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def nothing() -> Iterator[None]:
    while True:
        yield


async def test_five_thousand_while_others_come_and_go(call: Caller, tmp_path: Path) -> None:
    there = {"a", *(f"m{number:05d}" for number in range(COUNT - 1))}
    record = call.store.get("a")

    def busy() -> Iterator[None]:
        for number in range(COUNT):
            for name in (f"b{number}", f"m{number:05d}-new", f"z{number}"):
                add(tmp_path, name, record.path, record.digest)
            yield

    _, few = await names(call, FEW, nothing())
    found, all_of_them = await names(call, 10 * COUNT, busy())
    assert len(found) == len(set(found)), "none comes twice"
    assert there <= set(found), "and none is left out"
    assert all_of_them < 1.5 * few + (1 << 20), (few, all_of_them)
