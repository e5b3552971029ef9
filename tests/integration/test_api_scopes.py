"""Every public call through a real front door and real stages: with a key that has its scope alone,
with one that has all others, with none, and with one of another tenant.

What is called comes from the protos; a call that tests/api_calls.py does not know fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from api_calls import CALLS
from api_rows import Call, World
from gateway_stages import TOKEN, Stack, running_stack
from patience import PATIENCE_S
from plinth.coordinator.service import build as build_coordinator
from plinth.gateway.keys.api_keys import KeyStore
from plinth.internal.v1 import inference_pb2, tokenizer_pb2
from plinth.reward.service import build as build_reward
from plinth.shared.errors import PlinthError
from plinth.shared.identity import SCOPES
from plinth.shared.rpc.status import from_rpc_error
from plinth.shared.settings import load_settings
from plinth.trainer.consumer import JobConsumer
from plinth.trainer.service import build as build_trainer
from plinth.v1 import options_pb2
from stage_replicas import Stages

INTERNAL = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
)


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: Redis) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path / "data", redis_server) as running:
        yield running


@pytest.fixture
async def world(
    stack: Stack, redis_client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """With a trainer that takes no job, so that what is made stays as it is."""

    async def waits(consumer: JobConsumer) -> None:
        await consumer._stopping.wait()

    monkeypatch.setattr(JobConsumer, "_claim", waits)
    settings = load_settings(
        data_dir=stack.settings.data_dir, redis_url=stack.redis_url, cluster_token=TOKEN
    )
    stages = Stages(settings)
    try:
        await stages.add("coordinator", build_coordinator)
        await stages.add("trainer", build_trainer, launcher="processes")
        await stages.add("reward", build_reward)
        yield await World.made(stack, redis_client, tmp_path)
    finally:
        await stages.stop()


class Door:
    """Calls by their descriptors, as a client in any language makes them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def answer(self, method: MethodDescriptor, request: Any, key: str | None) -> Any:
        """The response, or a stream's first. Raises the PlinthError that the platform raised."""
        takes, gives = (GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        kinds = (
            "stream" if streams else "unary"
            for streams in (method.client_streaming, method.server_streaming)
        )
        open_call = getattr(self._channel, "_".join(kinds))(
            path(method),
            request_serializer=takes.SerializeToString,
            response_deserializer=gives.FromString,
        )
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        asked = iter([request]) if method.client_streaming else request
        call = open_call(asked, metadata=metadata, timeout=PATIENCE_S)
        try:
            if not method.server_streaming:
                return await call
            async for message in call:
                return message
            return None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def refusal(self, method: MethodDescriptor, request: Any, key: str | None) -> str:
        """The reason why it was refused; empty if it was answered."""
        try:
            await self.answer(method, request, key)
        except PlinthError as error:
            return error.reason
        return ""


@pytest.fixture
async def door(stack: Stack) -> AsyncIterator[Door]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        yield Door(channel)


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def scope_of(method: MethodDescriptor) -> str:
    scope: str = method.GetOptions().Extensions[options_pb2.scope]
    return scope


@pytest.fixture
async def methods(stack: Stack) -> list[MethodDescriptor]:
    """Of all services that the front door says it has, but health and reflection."""
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        metadata = (("authorization", f"Bearer {stack.key}"),)
        call = stub.ServerReflectionInfo(iter([question]), metadata=metadata, timeout=PATIENCE_S)
        answer = await call.read()
        call.cancel()
    names = [service.name for service in answer.list_services_response.service]
    pool = descriptor_pool.Default()
    services: list[ServiceDescriptor] = [
        pool.FindServiceByName(name) for name in names if not name.startswith("grpc.")
    ]
    return [method for service in services for method in service.methods]


async def test_every_call_has_a_row(methods: list[MethodDescriptor]) -> None:
    known = [call.method for call in CALLS]
    assert len(known) == len(set(known))
    public = {f"{method.containing_service.name}.{method.name}" for method in methods}
    assert public - set(known) == set(), "tests/api_calls.py has no row for these"
    assert set(known) - public == set(), "tests/api_calls.py has rows for what is no call"
    for method in methods:
        assert method.GetOptions().HasExtension(options_pb2.scope), path(method)
        assert scope_of(method) in SCOPES, path(method)


async def test_no_call_is_answered_without_its_scope(
    methods: list[MethodDescriptor], door: Door, redis_client: Redis
) -> None:
    """Whatever else the key may do, and before anything of the request is read."""
    store = KeyStore(redis_client)
    lacking = {
        scope: (await store.create("acme", SCOPES - {scope, "admin"}))[0] for scope in SCOPES
    }
    plain, record = await store.create("acme", {"admin"})
    await store.revoke(record.key_id)
    for method in methods:
        empty = GetMessageClass(method.input_type)()
        with pytest.raises(PlinthError) as caught:
            await door.answer(method, empty, lacking[scope_of(method)])
        assert caught.value.reason == "SCOPE_MISSING", path(method)
        assert caught.value.metadata == {"scope": scope_of(method)}, path(method)
        assert await door.refusal(method, empty, None) == "MISSING_API_KEY", path(method)
        assert await door.refusal(method, empty, plain) == "INVALID_API_KEY", path(method)


async def test_no_internal_call_passes_the_door(stack: Stack, door: Door) -> None:
    for service in INTERNAL:
        for method in service.methods:
            empty = GetMessageClass(method.input_type)()
            with pytest.raises(PlinthError) as caught:
                await door.answer(method, empty, stack.key)
            raised = caught.value.__cause__
            assert isinstance(raised, grpc.aio.AioRpcError)
            assert raised.code() is grpc.StatusCode.UNIMPLEMENTED, path(method)


async def test_each_call_by_its_scope_alone_and_by_another_tenant(
    methods: list[MethodDescriptor], door: Door, world: World, redis_client: Redis
) -> None:
    """In the order of the rows, of which later ones use what earlier ones made."""
    store = KeyStore(redis_client)
    keys = {
        (tenant, scope): (await store.create(tenant, {scope}))[0]
        for tenant in ("acme", "rival")
        for scope in SCOPES
    }
    found = {f"{one.containing_service.name}.{one.name}": one for one in methods}
    wrong = []
    for call in CALLS:
        method = found[call.method]
        scope = scope_of(method)
        if call.before is not None:
            await call.before(world)
        theirs = await door.refusal(method, call.request(world, "rival"), keys["rival", scope])
        if theirs != call.other:
            wrong.append(f"{call.method} of another tenant: {theirs!r}, not {call.other!r}")
        ours = await _ours(door, method, call, world, keys["acme", scope])
        if ours != call.outcome:
            wrong.append(f"{call.method}: {ours!r}, not {call.outcome!r}")
    assert not wrong, "\n".join(wrong)


async def _ours(door: Door, method: MethodDescriptor, call: Call, world: World, key: str) -> str:
    """What comes of the row's request by its owner; its answer is noted in the world."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                answer = await door.answer(method, call.request(world, "acme"), key)
            except PlinthError as error:
                if error.reason == call.until_not:
                    await asyncio.sleep(0.05)
                    continue
                return error.reason if error.reason == call.outcome else f"{error}"
            if call.note is not None:
                call.note(world, answer)
            return ""
