"""KServe's Open Inference Protocol over the gateway, by generated stubs."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from gateway_stages import DIGEST, EOS, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.services import tensors
from plinth.oip.v2 import open_inference_pb2 as pb
from plinth.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from plinth.shared.connection import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["Say it", "Größe"]
SAMPLING = {"seed": 3, "max_tokens": 40}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path_factory.mktemp("oip"), redis_server) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def stub(stack: Stack) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)


def key(stack: Stack) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {stack.key}"),)


def request(
    texts: Iterable[str] = TEXTS, *, raw: bool = True, stream: bool | None = None, **changes: Any
) -> pb.ModelInferRequest:
    elements = [text.encode() for text in texts]
    made = pb.ModelInferRequest(model_name="chat", id="mine")
    inputs: list[tuple[str, str, list[Any]]] = [
        (changes.pop("input", "text_input"), "BYTES", elements)
    ]
    if (parameters := changes.pop("sampling_parameters", SAMPLING)) is not None:
        inputs.append(("sampling_parameters", "BYTES", [json.dumps(parameters).encode()]))
    if stream is not None:
        inputs.append(("stream", "BOOL", [stream]))
    for name, datatype, values in inputs:
        tensor = made.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        if raw:
            made.raw_input_contents.append(tensors.packed(values, datatype))
        elif datatype == "BOOL":
            tensor.contents.bool_contents.extend(values)
        else:
            tensor.contents.bytes_contents.extend(values)
    for name, value in changes.pop("parameters", {}).items():
        made.parameters[name].CopyFrom(value)
    made.outputs.extend(
        pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
        for name in changes.pop("outputs", ())
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def placed(where: str, parameter: str) -> pb.ModelInferRequest:
    """With a parameter of a tensor."""
    made = request(outputs=["text_output"])
    getattr(made, where)[0].parameters[parameter].int64_param = 1
    return made


def outputs(response: pb.ModelInferResponse) -> dict[str, list[Any]]:
    """By name; each with the shape that it says."""
    found: dict[str, list[Any]] = {}
    for at, tensor in enumerate(response.outputs):
        if response.raw_output_contents:
            raw = response.raw_output_contents[at]
            if tensor.datatype == "BYTES":
                values: list[Any] = tensors._unpacked(raw, "BYTES", "")
            else:
                values = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
        else:
            contents = tensor.contents
            values = [*contents.bytes_contents, *contents.uint_contents]
        assert list(tensor.shape) == [len(values)]
        found[tensor.name] = values
    return found


async def failing(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_it_lives_is_ready_and_says_what_it_has(
    stack: Stack, stub: GRPCInferenceServiceStub
) -> None:
    told = key(stack)
    assert (await stub.ServerLive(pb.ServerLiveRequest(), metadata=told)).live
    assert (await stub.ServerReady(pb.ServerReadyRequest(), metadata=told)).ready
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=told)).name == "plinth"
    for name, version, ready in (
        ("chat", "", True),
        ("chat", "1", True),
        ("chat", "2", False),
        ("nobody", "", False),
    ):
        asked = pb.ModelReadyRequest(name=name, version=version)
        assert (await stub.ModelReady(asked, metadata=told)).ready is ready
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), metadata=told)
    assert [(m.name, m.version, m.state) for m in index.models] == [("chat", "1", "READY")]
    found = await stub.ModelMetadata(pb.ModelMetadataRequest(name="chat"), metadata=told)
    assert (found.name, list(found.versions), found.platform) == ("chat", ["1"], "plinth")
    assert {one.name: one.datatype for one in found.inputs} == {
        "text_input": "BYTES",
        "messages": "BYTES",
        "sampling_parameters": "BYTES",
        "stream": "BOOL",
    }
    unknown = await failing(stub.ModelMetadata(pb.ModelMetadataRequest(name="no"), metadata=told))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("raw", [True, False])
async def test_texts_in_texts_out_in_the_form_they_came_in(
    stack: Stack, stub: GRPCInferenceServiceStub, raw: bool
) -> None:
    answer = await stub.ModelInfer(request(raw=raw), metadata=key(stack))
    assert bool(answer.raw_output_contents) is raw
    assert outputs(answer) == {
        "text_output": [script_text(3, 0, 40).encode()] * 2,
        "finish_reason": [b"length"] * 2,
        "num_output_tokens": [40, 40],
    }
    assert (answer.model_name, answer.model_version, answer.id) == ("chat", "1", "mine")
    assert answer.parameters["revision"].string_param == "chat@1"
    assert answer.parameters["weights_digest"].string_param == DIGEST
    assert re.fullmatch("[0-9a-f]{32}", answer.parameters["response_id"].string_param)
    prompts = {bytes(r.input[0].tokens.ids).decode() for r in stack.shard.requests[-2:]}
    assert prompts == set(TEXTS)


async def test_conversations_parameters_and_chosen_outputs(
    stack: Stack, stub: GRPCInferenceServiceStub
) -> None:
    asked = request(
        [json.dumps([{"role": "user", "content": "Say it"}])],
        input="messages",
        sampling_parameters=None,
        outputs=["num_output_tokens", "text_output"],
        parameters={
            "max_tokens": pb.InferParameter(int64_param=7),
            "temperature": pb.InferParameter(double_param=0.5),
            "seed": pb.InferParameter(uint64_param=2),
            "priority": pb.InferParameter(uint64_param=1),  # Triton's: no effect
        },
    )
    answer = await stub.ModelInfer(asked, metadata=key(stack))
    assert outputs(answer) == {
        "num_output_tokens": [7],
        "text_output": [script_text(2, 0, 7).encode()],
    }
    assert [tensor.name for tensor in answer.outputs] == ["num_output_tokens", "text_output"]
    shard = stack.shard.requests[-1]
    assert bytes(shard.input[0].tokens.ids).decode() == "<user>Say it\n<assistant>"
    assert (shard.sampling.temperature, list(shard.sampling.stop_token_ids)) == (0.5, [EOS])


async def test_a_stream_answers_one_request_after_another(
    stack: Stack, stub: GRPCInferenceServiceStub
) -> None:
    wrong = request(model_name="nobody", id="wrong")
    empty = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}
    asked = [
        request(["a"], stream=True, id="pieces"),
        wrong,
        request(["b"], stream=True, id="and an end", parameters=empty),
        request(id="whole"),
    ]
    stack.shard.delay_s = 0.002  # so that there are pieces
    try:
        told: dict[str, list[pb.ModelStreamInferResponse]] = {}
        async for one in stub.ModelStreamInfer(iter(asked), metadata=key(stack)):
            told.setdefault(one.infer_response.id, []).append(one)
    finally:
        stack.shard.delay_s = 0.0
    assert list(told) == ["pieces", "wrong", "and an end", "whole"]
    (failed,) = told.pop("wrong")
    assert "'nobody' does not exist" in failed.error_message
    for name, responses in told.items():
        assert not any(one.error_message for one in responses)
        ends = [
            one.infer_response.parameters["triton_final_response"].bool_param for one in responses
        ]
        assert ends == [False] * (len(ends) - 1) + [True]
        found = [outputs(one.infer_response) for one in responses]
        if name == "whole":
            assert [len(values) for values in found[0].values()] == [2, 2, 2]
            continue
        if name == "and an end":
            assert found.pop() == {}
        assert len(found) > 1
        text = b"".join(one["text_output"][0] for one in found).decode()
        assert text == script_text(3, 0, 40)
        assert sum(one["num_output_tokens"][0] for one in found) == 40
        assert [one["finish_reason"][0] for one in found] == [b""] * (len(found) - 1) + [b"length"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(input="text"), "inputs.0.name: 'text' is no input"),
        (request(outputs=["logits"]), "outputs.0.name"),
        (request(stream=True), "ask ModelStreamInfer"),
        (request(input="sampling_parameters", sampling_parameters=None), "one element"),
        (request(["{"], input="messages"), "messages.0: is not valid JSON"),
        (request(['{"role": "user"}'], input="messages"), "messages.0: must be a JSON list"),
        (request(sampling_parameters={"temperature": 3}), "temperature"),
        (request(sampling_parameters={"n": 2}), "GenerationService"),
        (request(sampling_parameters={"model": "other"}), "model: is no parameter"),
        (request(["a\0b"]), "text_input: the character U+0000"),
        (
            request(parameters={"seed": pb.InferParameter(int64_param=1)}),
            "seed: is in sampling_parameters too",
        ),
        (request([]), "text_input: 0 prompts given, 1 to 2048"),
        (request(["x"] * 2049), "text_input: 2049 prompts given, 1 to 2048"),
        (request(outputs=["text_output"] * 2), "outputs.1.name: 'text_output' comes twice"),
        (request(id="x" * 257), "id: has at most 256 characters, not 257"),
        (placed("inputs", "shared_memory_region"), "there is no shared memory here"),
        (placed("outputs", "shared_memory_byte_size"), "there is no shared memory here"),
        (placed("outputs", "classification"), "texts have no classes"),
    ],
)
async def test_what_is_wrong_is_named(
    stack: Stack, stub: GRPCInferenceServiceStub, asked: pb.ModelInferRequest, words: str
) -> None:
    before = len(stack.shard.requests)
    error = await failing(stub.ModelInfer(asked, metadata=key(stack)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (error.details() or "")
    assert len(stack.shard.requests) == before


async def test_another_version_is_not_found(stack: Stack, stub: GRPCInferenceServiceStub) -> None:
    error = await failing(stub.ModelInfer(request(model_version="2"), metadata=key(stack)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "chat@1 answers now" in (error.details() or "")


async def test_it_takes_a_key_with_the_scope(stack: Stack, stub: GRPCInferenceServiceStub) -> None:
    redis = connect(stack.redis_url)
    other, _ = await KeyStore(redis).create("acme", {"tokenize"})
    await redis.aclose()
    for told, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", f"Bearer {other}"),), grpc.StatusCode.PERMISSION_DENIED),
    ):
        assert (
            await failing(stub.ServerLive(pb.ServerLiveRequest(), metadata=told))
        ).code() is code
        assert (await failing(stub.ModelInfer(request(), metadata=told))).code() is code
        assert (
            await failing(stub.ModelStreamInfer(iter([request()]), metadata=told).read())
        ).code() is code


async def test_hanging_up_frees_the_shard(stack: Stack, stub: GRPCInferenceServiceStub) -> None:
    stack.shard.delay_s = 0.05
    try:
        long = request(["a"], sampling_parameters={"max_tokens": 4000})
        call = stub.ModelInfer(long, metadata=key(stack))
        await until(lambda: stack.shard.running == 1, timeout_s=PATIENCE_S)
        call.cancel()
        await until(lambda: stack.shard.running == 0, timeout_s=PATIENCE_S)
    finally:
        stack.shard.delay_s = 0.0
