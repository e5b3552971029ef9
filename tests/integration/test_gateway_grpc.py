"""The gRPC API, with the generated stubs and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from gateway_stages import DIGEST, EOS, Shard, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.internal.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
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
    tokenization_pb2,
    tokenization_pb2_grpc,
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


def chat(
    seed: int = 3, *, n: int = 0, model: str = "chat", **sampling: object
) -> generation_pb2.StreamChatRequest:
    return generation_pb2.StreamChatRequest(
        model=model,
        messages=[chat_pb2.ChatMessage(role="user", content="Say it")],
        options=generation_pb2.GenerationOptions(
            sampling=sampling_pb2.SamplingParams(seed=seed, **{"max_tokens": 80, **sampling}), n=n
        ),
    )


def whole(request: generation_pb2.StreamChatRequest) -> generation_pb2.ChatRequest:
    """The same of the unary call."""
    return generation_pb2.ChatRequest.FromString(request.SerializeToString())


async def test_a_client_of_a_few_lines(stack: Stack, channel: grpc.aio.Channel) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    key = with_key(stack.key)
    models = await models_pb2_grpc.ModelServiceStub(channel).ListModels(
        models_pb2.ListModelsRequest(), metadata=key
    )
    assert [(m.name, m.weights_digest, m.ready_shards) for m in models.models] == [
        ("models/chat", DIGEST, 1)
    ]
    answers = [answer async for answer in stub.StreamChat(chat(), metadata=key)]
    assert "".join(answer.text for answer in answers) == script_text(3, 0, 80)
    assert answers[-1].finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert answers[-1].usage.completion_tokens == 80
    assert sum(len(answer.tokens) for answer in answers) == 80
    request = generation_pb2.StreamCompleteRequest(model="chat", prompt="x")
    request.options.stop.append("café")
    request.options.sampling.seed = 0
    texts = [answer.text async for answer in stub.StreamComplete(request, metadata=key)]
    assert "".join(texts) == script_text(0, 0, 90).split("café")[0]


async def test_the_first_message_of_a_stream_says_what_answers(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    before = time.time()
    call = stub.StreamChat(chat(5), metadata=with_key(stack.key))
    first, *others = [piece async for piece in call]
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", first.id)
    assert (first.model, first.revision, first.weights_digest) == ("chat", "chat@1", DIGEST)
    assert first.seed == 5
    assert before <= first.create_time.ToNanoseconds() / 1e9 <= time.time()
    heads = ("id", "create_time", "model", "revision", "weights_digest", "seed")
    told = [{field.name for field, _ in other.ListFields()} for other in others]
    assert others and not any(names & set(heads) for names in told)
    assert [piece.HasField("usage") for piece in others] == [False] * (len(others) - 1) + [True]
    trailing = dict(await call.trailing_metadata())
    assert first.id == f"chatcmpl-{trailing['x-request-id']}" and "x-plinth-model" not in trailing


async def test_a_whole_answer_is_what_its_stream_says(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    key = with_key(stack.key)
    request = chat(2, n=3, model="models/chat", top_logprobs=2)
    texts, tokens = {i: "" for i in range(3)}, {i: [] for i in range(3)}
    async for piece in stub.StreamChat(request, metadata=key):
        texts[piece.index] += piece.text
        tokens[piece.index] += piece.tokens
        usage = piece.usage
    answer = await stub.Chat(whole(request), metadata=key)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == list(texts.values())
    assert list(texts.values()) == [script_text(2, i, 80) for i in range(3)]
    assert [list(choice.tokens) for choice in answer.choices] == list(tokens.values())
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    assert (answer.model, answer.revision, answer.seed) == ("chat", "chat@1", 2)
    assert answer.usage == usage
    prompt = len("<user>Say it\n<assistant>")
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 240)
    assert not any(choice.HasField("selected") for choice in answer.choices)


async def test_a_completion_goes_on_from_ids_as_from_their_text(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    text = generation_pb2.CompleteRequest(model="chat", prompt="Größe")
    ids = generation_pb2.CompleteRequest(
        model="chat", prompt_tokens=tokenization_pb2.TokenSequence(ids="Größe".encode())
    )
    answers = []
    for request in (text, ids):
        request.options.sampling.MergeFrom(sampling_pb2.SamplingParams(seed=1, max_tokens=9))
        answers.append(await stub.Complete(request, metadata=with_key(stack.key)))
        assert bytes(stack.shard.requests[-1].input[0].tokens.ids) == "Größe".encode()
    assert [answer.choices[0].text for answer in answers] == [script_text(1, 0, 9)] * 2
    assert all(re.fullmatch("cmpl-[0-9a-f]{32}", answer.id) for answer in answers)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(
            generation_pb2.CompleteRequest(model="chat"), metadata=with_key(stack.key)
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "prompt: is missing" in (caught.value.details() or "")


async def test_models_come_in_pages_and_one_by_one(stack: Stack, channel: grpc.aio.Channel) -> None:
    stub = models_pb2_grpc.ModelServiceStub(channel)
    key = with_key(stack.key)
    async with stack.also_serving("a-first"), stack.also_serving("middle"):
        request, names = models_pb2.ListModelsRequest(page_size=2), []
        while True:
            page = await stub.ListModels(request, metadata=key)
            names.append([model.name for model in page.models])
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert names == [["models/a-first", "models/chat"], ["models/middle"]]
        request.page_token = "AAAA"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(request, metadata=key)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = await stub.GetModel(models_pb2.GetModelRequest(name="models/middle"), metadata=key)
    assert (found.model.revision, found.model.context_length) == ("middle@1", 4096)
    for name, code in (("models/no", "NOT_FOUND"), ("chat", "INVALID_ARGUMENT")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModel(models_pb2.GetModelRequest(name=name), metadata=key)
        assert caught.value.code().name == code


async def test_hanging_up_cancels_the_shard(stack: Stack, channel: grpc.aio.Channel) -> None:
    stack.shard.delay_s = 0.01
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.StreamChat(chat(max_tokens=4000), metadata=with_key(stack.key))
    async for _ in call:
        break
    call.cancel()
    await until(lambda: stack.shard.cancelled == 1, timeout_s=PATIENCE_S)
    unary = stub.Chat(whole(chat(max_tokens=4000)), metadata=with_key(stack.key))
    await until(lambda: stack.shard.running == 1, timeout_s=PATIENCE_S)
    unary.cancel()
    await until(lambda: stack.shard.cancelled == 2, timeout_s=PATIENCE_S)


async def test_the_deadline_reaches_the_shard(stack: Stack, channel: grpc.aio.Channel) -> None:
    stack.shard.delay_s = 0.01
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        request = chat(max_tokens=4000)
        async for _ in stub.StreamChat(request, metadata=with_key(stack.key), timeout=0.5):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Chat(whole(request), metadata=with_key(stack.key), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: stack.shard.running == 0, timeout_s=PATIENCE_S)


async def test_a_whole_answer_has_the_gateways_time_and_not_that_of_any_call(
    tmp_path: Path, redis_server: str, redis_client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLINTH_RPC__DEFAULT_DEADLINE_S", "0.2")
    shard = Shard(delay_s=0.01)
    async with (
        running_stack(tmp_path, redis_server, first=shard) as stack,
        grpc.aio.insecure_channel(stack.grpc_address) as channel,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        answer = await stub.Chat(whole(chat()), metadata=with_key(stack.key))
        assert answer.choices[0].message.content == script_text(3, 0, 80)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (chat(max_tokens=0), "options.sampling.max_tokens"),
        (chat(temperature=float("nan")), "options.sampling.temperature"),
        (chat(temperature=3), "options.sampling.temperature"),
        (chat(top_logprobs=21), "options.sampling.top_logprobs"),
        (chat(n=9), "options.n"),
        (chat(stop_token_ids=range(65)), "options.sampling.stop_token_ids"),
        (generation_pb2.StreamChatRequest(model="chat"), "messages"),
        (
            generation_pb2.StreamChatRequest(
                model="chat", messages=[chat_pb2.ChatMessage(role="king", content="x")]
            ),
            "messages.0.role",
        ),
        (
            generation_pb2.StreamChatRequest(
                model="chat", messages=[chat_pb2.ChatMessage(role="user", content="\0")]
            ),
            "messages.0.content",
        ),
    ],
)
async def test_bad_requests(
    stack: Stack, channel: grpc.aio.Channel, request_: generation_pb2.StreamChatRequest, words: str
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    for call in (
        stub.StreamChat(request_, metadata=with_key(stack.key)).read(),
        stub.Chat(whole(request_), metadata=with_key(stack.key)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
    assert stack.shard.requests == []


async def test_an_unknown_model(stack: Stack, channel: grpc.aio.Channel) -> None:
    request = chat()
    request.model = "nope"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in generation_pb2_grpc.GenerationServiceStub(channel).StreamChat(
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
        tokenization_pb2_grpc.TokenizationServiceStub(channel).Encode(
            tokenization_pb2.EncodeRequest()
        ),
        jobs_pb2_grpc.JobServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest()),
        runs_pb2_grpc.RunServiceStub(channel).ListRuns(runs_pb2.ListRunsRequest()),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_texts_ids_and_chats_by_the_tokenizer(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = tokenization_pb2_grpc.TokenizationServiceStub(channel)
    key = with_key(stack.key)
    texts = ["é", "", "a<eos>b"]
    request = tokenization_pb2.EncodeRequest(model="chat", texts=texts, parse_special_tokens=True)
    encoded = await stub.Encode(request, metadata=key)
    assert [list(one.ids) for one in encoded.sequences] == [[0xC3, 0xA9], [], [97, EOS, 98]]
    request.parse_special_tokens = False
    encoded = await stub.Encode(request, metadata=key)
    decoded = await stub.Decode(
        tokenization_pb2.DecodeRequest(model="chat", sequences=encoded.sequences), metadata=key
    )
    assert list(decoded.texts) == texts
    prompt = await stub.ApplyChatTemplate(
        tokenization_pb2.ApplyChatTemplateRequest(
            model="models/chat",
            messages=[chat_pb2.ChatMessage(role="developer", content="Be brief.")],
            add_generation_prompt=True,
        ),
        metadata=key,
    )
    assert prompt.text == "<system>Be brief.\n<assistant>"
    assert bytes(prompt.ids).decode() == prompt.text
    assert list(prompt.stop_token_ids) == [EOS]


async def test_what_stages_say_to_one_another_does_not_pass_the_door(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    shard = inference_pb2_grpc.InferenceServiceStub(channel)
    for call, request in (
        (tokenizer.Encode, tokenizer_pb2.EncodeRequest()),
        (shard.GetShard, inference_pb2.GetShardRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, metadata=with_key(stack.key))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stage_that_is_not_up_is_unavailable(
    stack: Stack, channel: grpc.aio.Channel
) -> None:
    stub = jobs_pb2_grpc.JobServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListJobs(jobs_pb2.ListJobsRequest(), metadata=with_key(stack.key))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "no trainer replica is up" in (caught.value.details() or "")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_tells_what_there_is_and_nothing_internal(
    stack: Stack, channel: grpc.aio.Channel, version: str
) -> None:
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    async def ask(**what: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**what)
        return await method(iter([request]), metadata=with_key(stack.key)).read()

    listed = (await ask(list_services="*")).list_services_response
    names = {service.name for service in listed.service}
    assert {"plinth.v1.GenerationService", "grpc.reflection.v1.ServerReflection"} <= names
    assert not any(name.startswith("plinth.internal") for name in names)
    for name in names:  # each with all that it imports
        found = (await ask(file_containing_symbol=name)).file_descriptor_response
        files = [FileDescriptorProto.FromString(one) for one in found.file_descriptor_proto]
        assert {needed for file in files for needed in file.dependency} <= {f.name for f in files}
    for hidden in (
        {"file_containing_symbol": "plinth.internal.v1.InferenceService"},
        {"file_by_filename": "plinth/internal/v1/tokenizer.proto"},
    ):
        assert (await ask(**hidden)).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
