"""The gRPC API, with the generated stubs and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway_stages import DIGEST, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.v1 import (
    chat_pb2,
    generation_pb2,
    generation_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    sampling_pb2,
)


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


@pytest.fixture
async def channel(stack: Stack) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as opened:
        yield opened


def with_key(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def chat(seed: int = 3, **sampling: object) -> generation_pb2.ChatRequest:
    return generation_pb2.ChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(role="user", content="Say it")],
        sampling=sampling_pb2.SamplingParams(seed=seed, **{"max_tokens": 80, **sampling}),
    )


async def test_a_client_of_a_few_lines(stack: Stack, channel: grpc.aio.Channel) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    key = with_key(stack.key)
    models = await models_pb2_grpc.ModelServiceStub(channel).ListModels(
        models_pb2.ListModelsRequest(), metadata=key
    )
    assert [(m.name, m.weights_digest, m.ready_shards) for m in models.models] == [
        ("chat", DIGEST, 1)
    ]
    answers = [answer async for answer in stub.Chat(chat(), metadata=key)]
    assert "".join(answer.text for answer in answers) == script_text(3, 0, 80)
    assert answers[0].seed == answers[-1].seed == 3
    assert answers[-1].finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert answers[-1].usage.completion_tokens == 80
    assert sum(len(answer.tokens) for answer in answers) == 80
    request = generation_pb2.CompleteRequest(model="chat", prompt="x", stop=["café"])
    request.sampling.seed = 0
    texts = [answer.text async for answer in stub.Complete(request, metadata=key)]
    assert "".join(texts) == script_text(0, 0, 90).split("café")[0]


async def test_hanging_up_cancels_the_shard(stack: Stack, channel: grpc.aio.Channel) -> None:
    stack.shard.delay_s = 0.01
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.Chat(chat(max_tokens=4000), metadata=with_key(stack.key))
    async for _ in call:
        break
    call.cancel()
    await until(lambda: stack.shard.cancelled == 1, timeout_s=PATIENCE_S)


async def test_the_deadline_reaches_the_shard(stack: Stack, channel: grpc.aio.Channel) -> None:
    stack.shard.delay_s = 0.01
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Chat(chat(max_tokens=4000), metadata=with_key(stack.key), timeout=0.5):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: stack.shard.running == 0, timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (chat(max_tokens=0), "sampling.max_tokens"),
        (chat(temperature=float("nan")), "sampling.temperature"),
        (chat(temperature=3), "sampling.temperature"),
        (chat(top_logprobs=21), "sampling.top_logprobs"),
        (chat(first_output_position=1), "sampling.first_output_position"),
        (generation_pb2.ChatRequest(model="chat"), "messages"),
        (
            generation_pb2.ChatRequest(
                model="chat", messages=[chat_pb2.ChatMessage(role="king", content="x")]
            ),
            "messages.0.role",
        ),
        (
            generation_pb2.ChatRequest(
                model="chat", messages=[chat_pb2.ChatMessage(role="user", content="\0")]
            ),
            "messages.0.content",
        ),
    ],
)
async def test_bad_requests(
    stack: Stack, channel: grpc.aio.Channel, request_: generation_pb2.ChatRequest, words: str
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Chat(request_, metadata=with_key(stack.key)):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")
    assert stack.shard.requests == []


async def test_an_unknown_model(stack: Stack, channel: grpc.aio.Channel) -> None:
    request = chat()
    request.model = "nope"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in generation_pb2_grpc.GenerationServiceStub(channel).Chat(
            request, metadata=with_key(stack.key)
        ):
            pass
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_without_a_key_only_health_answers(stack: Stack, channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "plinth.v1.GenerationService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    calls = (
        models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest()),
        tokenizer_pb2_grpc.TokenizerServiceStub(channel).Encode(tokenizer_pb2.EncodeRequest()),
        jobs_pb2_grpc.JobServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest()),
        runs_pb2_grpc.RunServiceStub(channel).ListRuns(runs_pb2.ListRunsRequest()),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_tokenizer_behind_the_door(stack: Stack, channel: grpc.aio.Channel) -> None:
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    key = with_key(stack.key)
    encoded = await stub.Encode(
        tokenizer_pb2.EncodeRequest(model="chat", texts=["é"]), metadata=key
    )
    assert list(encoded.sequences[0].ids) == [0xC3, 0xA9]
    call = stub.DecodeStream(metadata=key)
    texts = []
    for byte in "é!".encode():
        await call.write(tokenizer_pb2.DecodeStreamRequest(ids=[byte]))
        texts.append((await call.read()).text)
    await call.done_writing()
    assert texts == ["", "é", "!"]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stage_that_is_not_up_is_unavailable(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = jobs_pb2_grpc.JobServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListJobs(jobs_pb2.ListJobsRequest(), metadata=with_key(stack.key))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "no trainer replica is up" in (caught.value.details() or "")


async def test_reflection_lists_what_there_is(stack: Stack, channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="*")
    call = stub.ServerReflectionInfo(iter([ask]), metadata=with_key(stack.key))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"plinth.v1.GenerationService", "plinth.internal.v1.TokenizerService"} <= names
