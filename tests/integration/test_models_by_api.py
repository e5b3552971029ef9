"""`plinth models` through a real gateway, coordinator and trainer: imported from an upload, listed,
exported again, served, deleted. Files go on where a call broke off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from checkpoints import byte_tokenizer, random_llama
from patience import PATIENCE_S
from plinth.cli.models import app
from plinth.client import Client, InvalidArgument, NotFound
from plinth.client.transfers import download, upload
from plinth.coordinator.service import build as build_coordinator
from plinth.gateway.core import GatewayCore
from plinth.gateway.grpc_api import build_server
from plinth.gateway.keys.api_keys import KeyStore
from plinth.models.weights import weights_digest
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.trainer.service import build as build_trainer
from plinth.v1 import artifacts_pb2, artifacts_pb2_grpc, deployments_pb2
from stage_replicas import Stages

SCOPES = ("artifacts", "deployments", "jobs")


class Stopped(Exception):
    pass


class Platform:
    def __init__(self, address: str, key: str, store: ArtifactStore, stages: Stages) -> None:
        self.address, self.key, self.store, self.stages = address, key, store, stages

    async def call(self, act: Any, *given: Any) -> Any:
        """`act(client, …)` in a thread: the platform is in this one."""

        def called() -> Any:
            with Client(self.address, self.key) as client:
                return act(client, *given)

        return await asyncio.wait_for(asyncio.to_thread(called), PATIENCE_S)

    async def plinth(self, *arguments: str) -> Result:
        """`plinth models …` of somebody without the store."""
        env = {"PLINTH_URL": self.address, "PLINTH_API_KEY": self.key}
        run = CliRunner(env=env).invoke
        return await asyncio.wait_for(asyncio.to_thread(run, app, [*arguments]), PATIENCE_S)


@asynccontextmanager
async def platform(tmp_path: Path, redis_server: str, redis: Any) -> AsyncIterator[Platform]:
    trainer = {"background": False, "threads": 1}
    gateway = {"host": "127.0.0.1", "grpc_port": 0}
    settings = load_settings(
        data_dir=tmp_path / "data", redis_url=redis_server, trainer=trainer, gateway=gateway
    )
    stages = Stages(settings)
    key, _ = await KeyStore(redis).create("acme", SCOPES)
    core = GatewayCore(settings)
    try:
        await stages.add("coordinator", build_coordinator)
        await stages.add("trainer", build_trainer, launcher="processes")
        await core.open()
        server = build_server(core)
        port = await server.start()
        try:
            yield Platform(f"127.0.0.1:{port}", key, ArtifactStore(settings.store()), stages)
        finally:
            await server.stop(0)
    finally:
        await core.close()
        await stages.stop()


async def test_a_model_comes_and_goes(
    tmp_path: Path, redis_server: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "hf", layers=1))
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    (source / "code.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    async with platform(tmp_path, redis_server, redis_client) as made:
        done = await made.plinth("import", str(source), "--name", "chat")
        assert done.exit_code == 0, done.output
        assert "chat@1" in done.output and "mit" in done.output
        (chat,) = made.store.list()  # what was uploaded is gone
        assert (chat.ref, chat.tenant) == ("chat@1", "acme")
        again = await made.plinth("import", str(source), "--name", "chat")
        assert "chat@1" in again.output, again.output
        assert (await made.plinth("alias", "chat:prod", "1")).exit_code == 0
        listed = await made.plinth("list")
        words = listed.output.splitlines()[1].split()
        assert words[:5] == ["chat@1", "model", "llama", "prod", "hf"]
        shown = json.loads((await made.plinth("show", "chat:prod")).output)
        assert shown["extra"]["weights_digest"] == weights_digest(source)
        assert shown["extra"]["source"] == "hf"
        out = tmp_path / "out"
        exported = await made.plinth("export", "chat", str(out))
        assert exported.exit_code == 0, exported.output
        assert weights_digest(out) == weights_digest(source)
        served = await made.plinth("serve", "chat:prod", "--shards", "2", "--max-shards", "3")
        assert "chat@1 by 2 to 3 shards" in served.output, served.output
        assert "2 to 3" in (await made.plinth("serve", "chat")).output, "as before"
        refused = await made.plinth("delete", "chat@1")
        assert refused.exit_code == 1
        said = " ".join(refused.output.split())
        assert "alias chat:prod" in said and "deployment chat" in said
        assert "served is chat" in " ".join((await made.plinth("stop", "caht")).output.split())
        assert (await made.plinth("stop", "chat")).exit_code == 0
        await made.call(lambda client: client.artifacts.delete_alias("artifacts/chat:prod"))
        assert (await made.plinth("delete", "chat@1")).exit_code == 0
        assert made.store.list() == []


async def test_what_is_no_model_is_told_as_on_the_store(
    tmp_path: Path, redis_server: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "hf", layers=1))
    (source / "model.safetensors").write_bytes(b"cut")
    monkeypatch.chdir(tmp_path)
    async with platform(tmp_path, redis_server, redis_client) as made:
        for arguments, words in {
            ("import", str(source), "--name", "x"): "damaged",
            ("import", "nowhere", "--name", "x"): "no such folder or file",
            ("import", str(source), "--name", "Not A Name"): "name",
            ("show", "nobody"): "nobody",
            ("serve", "nobody"): "nobody",
            ("delete", "nobody"): "names no version",
        }.items():
            done = await made.plinth(*arguments)
            assert done.exit_code == 1, done.output
            assert words in " ".join(done.output.split())
            assert "Traceback" not in done.output
        assert made.store.list() == []


async def test_files_go_on_where_they_stopped(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 10_000 + b"end")
    files = {"sub/big": big, "small": tmp_path / "small"}
    files["small"].write_text("x")
    async with platform(tmp_path, redis_server, redis_client) as made:
        sent: list[int] = []

        def stop_early(client: Client) -> None:
            def told(done: int, total: int) -> None:
                sent.append(done)
                if done:
                    raise Stopped

            upload(client, files, "drop", told=told)

        with pytest.raises(Stopped):
            await made.call(stop_early)
        begun: list[int] = []

        def go_on(client: Client) -> artifacts_pb2.Artifact:
            return upload(client, files, "drop", told=lambda done, total: begun.append(done))

        first = await made.call(go_on)
        assert begun[0] > 0, "what was sent is not sent again"
        assert (first.name, first.owner.tenant) == ("artifacts/drop@1", "acme")
        assert (await made.call(go_on)).name == first.name
        copy = tmp_path / "copy"
        await made.call(download, "artifacts/drop", copy)
        assert (copy / "sub" / "big").read_bytes() == big.read_bytes()
        (copy / "small").write_text("y")
        await made.call(download, "artifacts/drop@1", copy)
        assert (copy / "small").read_text() == "x"
        with pytest.raises(NotFound):
            await made.call(download, "artifacts/nobody", copy)
        files["gone"] = tmp_path / "gone"
        with pytest.raises(InvalidArgument, match="can't be read"):
            await made.call(go_on)


async def test_a_download_goes_on_at_another_coordinator(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    data = bytes(range(256)) * (32 << 12)  # more than lies between the two
    (tmp_path / "weights").write_bytes(data)
    async with platform(tmp_path, redis_server, redis_client) as made:
        made.store.publish("chat", "model", tmp_path / "weights")
        metadata = (("authorization", f"Bearer {made.key}"),)
        async with grpc.aio.insecure_channel(made.address) as channel:
            stub: Any = artifacts_pb2_grpc.ArtifactServiceStub(channel)
            request = artifacts_pb2.DownloadArtifactRequest(name="artifacts/chat", path="weights")
            came = bytearray()
            async for piece in stub.DownloadArtifact(request, metadata=metadata):
                if not came:
                    await made.stages.add("coordinator", build_coordinator)
                    await made.stages.stop_first("coordinator")
                assert piece.offset == len(came)
                came += piece.data
        assert came == data


async def test_a_deployment_needs_a_model(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with platform(tmp_path, redis_server, redis_client) as made:
        (tmp_path / "text").write_text("x")
        await made.call(upload, {"text": tmp_path / "text"}, "drop")
        spec = deployments_pb2.DeploymentSpec(artifact="drop")
        with pytest.raises(InvalidArgument, match="drop@1 is a files"):
            await made.call(
                lambda client: client.deployments.create_deployment(
                    "chat", deployment=deployments_pb2.Deployment(spec=spec)
                )
            )
