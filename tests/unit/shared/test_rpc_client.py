"""Channels against real servers: identity, deadlines, retries; picking replicas."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import grpc
import pytest

from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.shared.errors import DeadlineExceeded, Unavailable
from plinth.shared.identity import (
    SYSTEM,
    Principal,
    call_scope,
    current_principal,
    current_request_id,
    remaining_s,
)
from plinth.shared.registry import Registry, Replica
from plinth.shared.rpc.channel import idempotent_methods
from plinth.shared.rpc.client import StageClients, open_channel
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings

TOKEN = "t" * 32


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load_settings(data_dir=tmp_path)


class Facts(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Answers with what it knows of its call; `forward` asks another server first."""

    def __init__(self) -> None:
        self.forward: grpc.aio.Channel | None = None
        self.failures = 0  # calls to refuse with UNAVAILABLE before answering
        self.calls = 0

    async def Decode(self, request, context):
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise Unavailable("not now")
        if self.forward is not None:
            return await tokenizer_pb2_grpc.TokenizerServiceStub(self.forward).Decode(request)
        principal = current_principal()
        facts = {
            "tenant": principal.tenant,
            "scopes": sorted(principal.scopes),
            "request_id": current_request_id(),
            "remaining": remaining_s(),
        }
        return pb.DecodeResponse(texts=[json.dumps(facts)])

    async def Train(self, request, context):
        self.calls += 1
        raise Unavailable("not now")
        yield


@asynccontextmanager
async def serving(settings: Settings, port: int = 0):
    facts = Facts()
    service = GrpcService(
        "plinth.internal.v1.TokenizerService",
        lambda s: tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(facts, s),
        scopes={"*": "tokenize"},
    )
    server = GrpcServer([service], stage="tokenizer", settings=settings, token=TOKEN, port=port)
    bound = await server.start()
    try:
        yield facts, f"127.0.0.1:{bound}"
    finally:
        await server.stop(0)


def opened(address: str, settings: Settings, principal: Principal | None = None):
    return open_channel(
        address, stage="tokenizer", settings=settings, token=TOKEN, principal=principal
    )


async def ask(channel: grpc.aio.Channel, **kwargs) -> dict:
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    return json.loads((await stub.Decode(pb.DecodeRequest(), **kwargs)).texts[0])


async def test_a_call_carries_identity_and_a_default_deadline(settings) -> None:
    async with serving(settings) as (_facts, address):
        async with opened(address, settings) as channel:
            facts = await ask(channel)
            assert facts["tenant"] == SYSTEM.tenant
            assert facts["scopes"] == ["admin"]
            assert len(facts["request_id"]) == 32
            assert 0 < facts["remaining"] <= settings.rpc.default_deadline_s + 0.1
            user = Principal("acmé", "k1", frozenset({"tokenize"}))
            with call_scope(request_id="r-1", principal=user, timeout_s=50):
                facts = await ask(channel)
                assert facts["tenant"] == "acmé"
                assert facts["request_id"] == "r-1"
                assert 0 < facts["remaining"] <= 50.1  # gRPC rounds up
                # The sooner of the two deadlines holds.
                assert (await ask(channel, timeout=500))["remaining"] <= 50.1
                assert (await ask(channel, timeout=20))["remaining"] <= 20.1
        async with opened(address, settings, user) as channel:
            assert (await ask(channel))["tenant"] == "acmé"


async def test_a_server_that_is_slow_to_answer_a_connection_is_not_away(settings) -> None:
    """As on a machine full of other work. A stream, which is not tried again, reaches it."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async with serving(settings) as (facts, address):
        host, port = address.split(":")

        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.6)
            there = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

        proxy = await asyncio.start_server(slowly, "127.0.0.1", 0)
        async with proxy:
            late = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            async with opened(late, settings) as channel:
                stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
                with pytest.raises(Unavailable, match="not now"):
                    async for _ in stub.Train(pb.TrainRequest()):
                        pass
    assert facts.calls == 1


async def test_a_caller_cannot_smuggle_in_another_identity(settings) -> None:
    user = Principal("acme", "k1", frozenset({"tokenize"}))
    forged = json.dumps({"tenant": "root", "key_id": "x", "scopes": ["admin"]})
    async with serving(settings) as (_, address), opened(address, settings, user) as channel:
        assert (await ask(channel, metadata=[("x-plinth-principal", forged)]))["tenant"] == "acme"


async def test_deadline_identity_and_errors_pass_through_a_middle_stage(settings) -> None:
    user = Principal("acme", "k1", frozenset({"tokenize"}))
    async with (
        serving(settings) as (middle, address),
        serving(settings) as (end, end_address),
        opened(end_address, settings) as forward,
        opened(address, settings, user) as channel,
    ):
        middle.forward = forward
        facts = await ask(channel, timeout=30, metadata=[("x-plinth-note", "a")])
        assert facts["tenant"] == "acme"
        assert 0 < facts["remaining"] <= 30.1
        end.failures = 100
        with pytest.raises(Unavailable) as caught:
            await ask(channel)
        assert caught.value.message == "not now"
        assert end.calls == 1 + 4  # the middle one retried; the caller did not multiply that


async def test_an_expired_context_ends_at_once(settings) -> None:
    async with serving(settings) as (facts, address), opened(address, settings) as channel:
        with call_scope(timeout_s=0), pytest.raises(DeadlineExceeded):
            await ask(channel)
        assert facts.calls == 0


async def test_idempotent_unary_calls_are_retried_and_streams_are_not(settings) -> None:
    async with serving(settings) as (facts, address), opened(address, settings) as channel:
        facts.failures = 2
        await ask(channel)
        assert facts.calls == 3
        facts.calls = 0
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        with pytest.raises(Unavailable):
            await stub.Train(pb.TrainRequest()).read()
        assert facts.calls == 1


def test_reads_are_retried_and_no_stream_is() -> None:
    """As the protos say, of public services and of those between stages."""
    retried = {f"{service.rpartition('.')[2]}.{method}" for service, method in idempotent_methods()}
    assert {"RunService.GetRun", "RunService.CreateRun", "TokenizerService.Encode"} <= retried
    assert not retried & {"RunService.WatchRun", "GenerationService.Chat", "JobService.WatchJob"}


class Listed:
    """A registry whose answer the test sets."""

    def __init__(self, *replicas: Replica) -> None:
        self.answer = list(replicas)

    async def replicas(self, stage: str) -> list[Replica]:
        return [replica for replica in self.answer if replica.stage == stage]


def replica(id_: str, waiting: int = 0, running: int = 0, *models: str, address: str = ""):
    bindings = [{"model": model, "artifact": f"{model}@1"} for model in models]
    fields = {
        "waiting": str(waiting),
        "running": str(running),
        "bindings": json.dumps(bindings),
    }
    return Replica("inference", id_, address or f"127.0.0.1:1{id_}", fields)


def clients(settings: Settings, *replicas: Replica) -> StageClients:
    registry: Registry = Listed(*replicas)  # type: ignore[assignment]
    return StageClients(registry, settings, TOKEN)


async def test_the_least_busy_is_picked(settings) -> None:
    pool = clients(settings, replica("1", 1, 0), replica("2", 0, 9), replica("3", 0, 5))
    assert (await pool.pick("inference")).id == "3"
    assert (await pool.pick("inference", exclude={"3"})).id == "2"
    assert (await pool.pick("inference", exclude={"3", "2"})).id == "1"
    with pytest.raises(Unavailable) as caught:
        await pool.pick("inference", exclude={"1", "2", "3"})
    assert caught.value.retry_after_s is not None
    with pytest.raises(Unavailable, match="no trainer replica is up"):
        await pool.pick("trainer")


async def test_a_burst_between_two_announcements_is_spread(settings) -> None:
    pool = clients(settings, replica("1", 0, 0), replica("2", 0, 1))
    picked = [(await pool.pick("inference")).id for _ in range(21)]
    assert picked.count("1") == 11
    assert picked.count("2") == 10


async def test_a_new_announcement_replaces_what_was_sent_before_it(settings) -> None:
    """Also one that says the same: what was sent has ended meanwhile."""
    busy = replica("2", 0, 4)
    listed = Listed(replica("1", 0, 0), busy)
    pool = StageClients(listed, settings, TOKEN)  # type: ignore[arg-type]
    assert [(await pool.pick("inference")).id for _ in range(4)] == ["1"] * 4
    again = replica("1", 0, 0)
    listed.answer = [Replica("inference", "1", again.address, {**again.fields, "beat": "2"}), busy]
    assert [(await pool.pick("inference")).id for _ in range(4)] == ["1"] * 4


async def test_only_holders_of_a_model_are_picked(settings) -> None:
    pool = clients(settings, replica("1", 0, 0, "chat"), replica("2", 0, 0, "code", "small"))
    assert (await pool.pick("inference", model="small")).id == "2"
    assert (await pool.pick("inference", model="chat@1")).id == "1"
    with pytest.raises(Unavailable, match="none of 2 inference replicas holds 'none'"):
        await pool.pick("inference", model="none")


async def test_a_replica_that_refused_is_left_out_for_a_moment(settings, monkeypatch) -> None:
    async with serving(settings) as (_facts, address):
        pass  # now nobody listens there
    dead = replica("1", 0, 0, address=address)
    pool = clients(settings, dead, replica("2", 5, 5))
    try:
        first = await pool.pick("inference")
        assert first.id == "1"
        with pytest.raises(Unavailable):
            await ask(pool.channel(first))
        until = time.monotonic() + PATIENCE_S
        while (await pool.pick("inference")).id != "2":
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        monkeypatch.setattr("plinth.shared.rpc.client.SKIP_REFUSED_S", 0.0)
        assert (await pool.pick("inference")).id == "1"
        pool.refused(dead)
        monkeypatch.setattr("plinth.shared.rpc.client.SKIP_REFUSED_S", 60.0)
        assert (await pool.pick("inference")).id == "2"
    finally:
        await pool.close()


async def test_channels_share_a_transport_and_go_when_the_replica_is_gone(
    settings, monkeypatch
) -> None:
    async with serving(settings) as (_facts, address):
        pool = clients(settings, replica("1", address=address))
        try:
            user = Principal("acme", "k1", frozenset({"tokenize"}))
            one = await pool.pick("inference")
            assert (await ask(pool.channel(one, user)))["tenant"] == "acme"
            assert (await ask(pool.channel(one)))["tenant"] == SYSTEM.tenant
            assert len(pool._transports) == 1
            monkeypatch.setattr("plinth.shared.rpc.client.FORGET_AFTER_S", -1.0)
            pool._registry.answer.clear()  # type: ignore[attr-defined]
            with pytest.raises(Unavailable):
                await pool.pick("inference")
            assert not pool._transports
        finally:
            await pool.close()
