"""Folders up and down against a real ArtifactService: whole, stopped and gone on with, damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from artifact_calls import ANNA, Caller
from plinth.client import AsyncClient, Client, DataLoss, InvalidArgument, Policy, Unavailable
from plinth.client.transfers import Landing
from plinth.shared.rpc.auth import PRINCIPAL_KEY, TOKEN_KEY, encode_principal
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import load_settings
from plinth.v1 import artifacts_pb2 as pb
from plinth.v1 import artifacts_pb2_grpc as rpc

TOKEN = "a cluster token for tests"
FILES = {"config.json": b"{}", "sub/weights": b"0123456789abcdef!", "empty": b""}


class Stage:
    """An artifact service that can be told to fail at a request, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.caller = Caller((folder / "store").as_uri())
        self.written: list[tuple[str, int]] = []
        self.read: list[tuple[str, int]] = []
        self.fails_at: int | None = None  # of all WriteUploads, and for good
        self._server = GrpcServer(
            [
                GrpcService(
                    "plinth.v1.ArtifactService",
                    lambda server: rpc.add_ArtifactServiceServicer_to_server(
                        self.caller._servicer, server
                    ),
                    validators={
                        "WriteUpload": self._note,
                        "DownloadArtifact": lambda asked: self.read.append(
                            (asked.path, asked.offset)
                        ),
                    },
                )
            ],
            stage="coordinator",
            settings=load_settings(data_dir=folder),
            token=TOKEN,
        )

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self._server.start()}"

    async def stop(self) -> None:
        await self._server.stop(0)

    def _note(self, request: pb.WriteUploadRequest) -> None:
        if self.fails_at == len(self.written):
            raise Unavailable("the store is away")
        self.written.append((request.path, request.offset))


class Transfer:
    """One client's two calls, awaited whichever it is."""

    def __init__(self, kind: type[Client] | type[AsyncClient], stage: Stage) -> None:
        known = {TOKEN_KEY: TOKEN, PRINCIPAL_KEY: encode_principal(ANNA)}
        self._client: Any = kind(stage.address, "", policy=Policy(patience_s=0, metadata=known))
        self._is_async = kind is AsyncClient

    async def __call__(self, name: str, *given: Any, **named: Any) -> Any:
        method = getattr(self._client, name)
        if self._is_async:
            return await method(*given, **named)
        return await asyncio.to_thread(method, *given, **named)

    async def close(self) -> None:
        closed = self._client.close()
        if self._is_async:
            await closed


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    running = Stage(tmp_path / "stage")
    await running.start()
    yield running
    await running.stop()


@pytest.fixture(params=[Client, AsyncClient])
async def call(request: pytest.FixtureRequest, stage: Stage) -> AsyncIterator[Transfer]:
    transfer = Transfer(request.param, stage)
    yield transfer
    await transfer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / path).write_bytes(data)
    return tmp_path / "mine"


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_up_and_down(stage: Stage, call: Transfer, folder: Path, tmp_path: Path) -> None:
    made = await call("upload", folder, "mine", license="mit")
    assert (made.name, made.kind) == ("artifacts/mine@1", pb.ARTIFACT_KIND_FILES)
    there = content(stage.caller.store.fetch("mine"))
    assert {path: there[path] for path in FILES} == FILES
    assert await call("upload", str(folder), "mine", license="mit") == made
    assert len(stage.written) == 6  # pieces of 4 bytes, each once
    assert (await call("download", "artifacts/mine", tmp_path / "down")).name == made.name
    assert content(tmp_path / "down") == FILES


async def test_another_content_is_another_version(call: Transfer, folder: Path) -> None:
    await call("upload", folder, "mine")
    (folder / "config.json").write_bytes(b"[]")
    assert (await call("upload", folder, "mine")).name == "artifacts/mine@2"


async def test_a_stopped_upload_goes_on(stage: Stage, call: Transfer, folder: Path) -> None:
    stage.fails_at = 3
    with pytest.raises(Unavailable, match="the store is away"):
        await call("upload", folder, "mine")
    stage.fails_at = None
    assert (await call("upload", folder, "mine")).name == "artifacts/mine@1"
    assert len(set(stage.written)) == 6
    assert len(stage.written) < 3 + 6  # pieces go side by side: one behind a gap is sent again


async def test_a_stopped_download_goes_on(
    stage: Stage, call: Transfer, folder: Path, tmp_path: Path
) -> None:
    await call("upload", folder, "mine")
    down = tmp_path / "down"
    (down / "sub").mkdir(parents=True)
    (down / "config.json").write_bytes(b"{}")  # is there
    (down / "empty").write_bytes(b"something else")
    (down / "sub" / "weights.part").write_bytes(b"01234567")
    assert (await call("download", "artifacts/mine", down)).name == "artifacts/mine@1"
    assert content(down) == FILES
    assert stage.read == [("empty", 0), ("sub/weights", 8)]


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "", "a\0b"])
def test_a_path_that_leads_out_is_not_written(path: str, tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="leads out"):
        Landing.of(tmp_path, pb.ArtifactFile(path=path))


async def test_what_comes_damaged_is_told_and_not_kept(
    call: Transfer, folder: Path, tmp_path: Path
) -> None:
    await call("upload", folder, "mine")
    down = tmp_path / "down"
    (down / "sub").mkdir(parents=True)
    (down / "sub" / "weights.part").write_bytes(b"another")
    with pytest.raises(DataLoss, match=r"sub/weights came as sha256"):
        await call("download", "artifacts/mine@1", down)
    await call("download", "artifacts/mine@1", down)
    assert content(down) == FILES


async def test_folders_that_are_none(call: Transfer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for path, words in ((tmp_path / "bare", "no files"), (tmp_path / "absent", "no folder")):
        with pytest.raises(InvalidArgument, match=words):
            await call("upload", path, "mine")
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgument, match="link is a link"):
        await call("upload", folder, "mine")
