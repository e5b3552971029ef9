"""Keys and scopes against a real Redis, and the gateway as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from gateway_stages import Replica, Stack, answering, gateway_settings, running_stack, until
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.cluster.layout import settings_environment
from plinth.cluster.ports import free_port
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared import redis_keys
from plinth.shared.connection import connect
from plinth.shared.errors import (
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from plinth.shared.identity import hash_api_key
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import (
    keys_pb2,
    keys_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    tokenization_pb2,
    tokenization_pb2_grpc,
)

OK = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_only_the_hash_of_a_key_is_kept(redis_client: Redis) -> None:
    store = KeyStore(redis_client)
    plain, record = await store.create("acme", {"inference"}, "laptop")
    raw = await redis_client.hgetall(redis_keys.api_keys())
    assert list(raw) == [hash_api_key(plain).encode()]
    assert plain.encode() not in b"".join(raw.values())
    principal = await KeyStore(redis_client).principal(plain)
    assert principal.tenant == "acme"
    assert principal.key_id == record.key_id
    assert principal.scopes == {"inference"}


class Runs(runs_pb2_grpc.RunServiceServicer):
    """One run, which never ends; tells how many watch it."""

    def __init__(self) -> None:
        self.watchers = 0

    async def WatchRun(self, request, context):
        self.watchers += 1
        try:
            run = runs_pb2.Run(name=request.name)
            yield runs_pb2.WatchRunResponse(run=run, resume_token="1")
            await asyncio.Event().wait()
        finally:
            self.watchers -= 1


async def test_a_watch_ends_when_its_key_is_revoked(
    tmp_path: Path, redis_server: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with it what it holds at the stage; another key's watch goes on, also while Redis can't
    confirm it."""
    for module in ("keyring", "revocation"):
        monkeypatch.setattr(f"plinth.gateway.keys.{module}.REFRESH_S", 0.05)
    runs = Runs()
    async with running_stack(tmp_path, redis_server) as stack:
        service = GrpcService(
            "plinth.v1.RunService",
            lambda server: runs_pb2_grpc.add_RunServiceServicer_to_server(runs, server),
            {"*": "runs"},
        )
        replica = Replica(stack.settings, redis_server, "coordinator", "coordinator-0", service)
        stack.replicas["coordinator-0"] = replica
        await replica.start({})
        store = KeyStore(redis_client)
        made = [await store.create("acme", {"runs"}) for _ in range(2)]
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            stub = runs_pb2_grpc.RunServiceStub(channel)
            request = runs_pb2.WatchRunRequest(name="runs/r")
            calls = [stub.WatchRun(request, metadata=bearer(key).items()) for key, _ in made]
            for call in calls:
                assert (await call.read()).run.name == "runs/r"
            await store.revoke(made[0][1].key_id)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(calls[0].read(), PATIENCE_S)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await until(lambda: runs.watchers == 1)
            keyring = redis_keys.api_keys()
            kept = await redis_client.hgetall(keyring)
            await redis_client.delete(keyring)
            await redis_client.set(keyring, "in the way")  # no key can be read now
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(calls[1].read()), 0.5)
            assert runs.watchers == 1
            await redis_client.delete(keyring)
            await redis_client.hset(keyring, mapping=kept)
            await store.revoke(made[1][1].key_id)
            await until(lambda: runs.watchers == 0)


async def test_a_watch_ends_when_its_key_loses_the_scope(
    tmp_path: Path, redis_server: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("keyring", "revocation"):
        monkeypatch.setattr(f"plinth.gateway.keys.{module}.REFRESH_S", 0.05)
    runs = Runs()
    async with running_stack(tmp_path, redis_server) as stack:
        service = GrpcService(
            "plinth.v1.RunService",
            lambda server: runs_pb2_grpc.add_RunServiceServicer_to_server(runs, server),
            {"*": "runs"},
        )
        replica = Replica(stack.settings, redis_server, "coordinator", "coordinator-0", service)
        stack.replicas["coordinator-0"] = replica
        await replica.start({})
        key, record = await KeyStore(redis_client).create("acme", {"runs", "jobs"})
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            request = runs_pb2.WatchRunRequest(name="runs/r")
            watch = runs_pb2_grpc.RunServiceStub(channel).WatchRun(
                request, metadata=bearer(key).items()
            )
            assert (await watch.read()).run.name == "runs/r"
            less = keys_pb2.Key(
                name=f"keys/{record.key_id}", spec=keys_pb2.KeySpec(scopes=["jobs"])
            )
            await keys_pb2_grpc.KeyServiceStub(channel).UpdateKey(
                keys_pb2.UpdateKeyRequest(key=less), metadata=bearer(stack.key).items()
            )
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(watch.read(), PATIENCE_S)
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
            await until(lambda: runs.watchers == 0)


async def test_a_revoked_key_is_refused_and_stays_revoked(redis_client: Redis) -> None:
    store, other = KeyStore(redis_client), KeyStore(redis_client)
    plain, record = await store.create("acme", {"inference"})
    await other.principal(plain)
    await store.revoke(record.key_id)
    await other.refresh()
    with pytest.raises(Unauthenticated):
        await other.principal(plain)
    await other.add(plain, record)
    with pytest.raises(Unauthenticated):
        await other.principal(plain)
    with pytest.raises(NotFound):
        await store.revoke("no-such-id")


@pytest.mark.parametrize(
    ("tenant", "scopes", "label"),
    [("a b", {"inference"}, ""), ("a", {"root"}, ""), ("a", set(), ""), ("a", {"jobs"}, "\n")],
)
async def test_bad_keys_are_not_made(
    redis_client: Redis, tenant: str, scopes: set[str], label: str
) -> None:
    with pytest.raises(InvalidArgument):
        await KeyStore(redis_client).create(tenant, scopes, label)
    assert await redis_client.hlen(redis_keys.api_keys()) == 0


async def test_known_keys_work_while_redis_is_away(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    redis = connect(server.start())
    try:
        store = KeyStore(redis)
        plain, _ = await store.create("acme", {"inference"})
        server.stop()
        with pytest.raises(Unavailable):
            await store.refresh()
        assert (await store.principal(plain)).tenant == "acme"
        with pytest.raises(Unavailable):  # not "wrong": nobody knows
            await store.principal("plinth-never-seen")
    finally:
        server.stop()
        await redis.aclose()


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server, tenant_concurrent_requests=1) as running:
        yield running


async def test_scopes_hold_at_both_doors(stack: Stack, redis_client: Redis) -> None:
    store = KeyStore(redis_client)
    asks, _ = await store.create("acme", {"inference"})
    counts, _ = await store.create("acme", {"tokenize"})
    async with httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE_S) as client:
        path = "/v1/chat/completions"
        assert (await client.post(path, json=OK, headers=bearer(asks))).status_code == 200
        refused = await client.post(path, json=OK, headers=bearer(counts))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
        assert (await client.get("/v1/models", headers=bearer(counts))).status_code == 403
    assert stack.shard.seen[0][1] == "acme"
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(channel)
        request = tokenization_pb2.EncodeRequest(model="chat", texts=["x"])
        await stub.Encode(request, metadata=tuple(bearer(counts).items()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(request, metadata=tuple(bearer(asks).items()))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_tenant_over_its_quota_is_429(stack: Stack, redis_client: Redis) -> None:
    key, _ = await KeyStore(redis_client).create("acme", {"inference"})
    stack.shard.delay_s = 0.01
    async with httpx.AsyncClient(
        base_url=stack.url, headers=bearer(key), timeout=PATIENCE_S
    ) as client:
        path, long = "/v1/chat/completions", {**OK, "max_tokens": 4000}
        slow = asyncio.create_task(client.post(path, json=long))
        await until(lambda: stack.shard.running == 1)
        refused = await client.post(path, json=OK)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        await until(lambda: stack.shard.running == 0)
        await admitted(client, path)


async def admitted(client: httpx.AsyncClient, path: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.post(path, json=OK)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_gateway_goes_on_while_redis_is_away(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    url = server.start()
    try:
        async with running_stack(tmp_path / "data", url) as stack:
            async with httpx.AsyncClient(
                base_url=stack.url, headers=bearer(stack.key), timeout=PATIENCE_S
            ) as client:
                path = "/v1/chat/completions"
                assert (await client.post(path, json=OK)).status_code == 200
                server.stop()
                answer = await client.post(path, json=OK, timeout=PATIENCE_S)
                assert answer.status_code == 200, answer.text
            server.start()
    finally:
        server.stop()


async def test_the_process_starts_serves_and_goes(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    settings = gateway_settings(tmp_path / "data", redis_server)
    environment = {**os.environ, **settings_environment(settings)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "plinth.gateway", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        url = f"http://127.0.0.1:{settings.gateway.port}"
        await answering(f"{url}/healthz")
        key_file = settings.secrets_dir / "api-key"
        await until(key_file.exists)
        assert key_file.stat().st_mode & 0o777 == 0o600
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            assert (await client.get(f"{url}/readyz")).status_code == 503
            told = (await client.get(f"{url}/metrics")).text
            assert "plinth_gateway_ready 0.0" in told
            assert 'plinth_redis_reachable{stage="gateway"} 1.0' in told
            key = key_file.read_text().strip()
            models = await client.get(f"{url}/v1/models", headers=bearer(key))
            assert models.json() == {"object": "list", "data": []}
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0
        assert key.encode() not in log
        assert b"Traceback" not in log, log.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_taken_port_is_one_clear_line(tmp_path: Path, redis_server: str) -> None:
    import socket

    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        settings = gateway_settings(tmp_path / "data", redis_server, port=port)
        environment = {**os.environ, **settings_environment(settings)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "plinth.gateway", env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, log = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in log.decode().splitlines()[-1]
    assert "Traceback" not in log.decode()


async def test_importing_the_gateway_brings_neither_torch_nor_ray() -> None:
    code = (
        "import sys, plinth.gateway.__main__;"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.strip() == b"[]"
