"""What other stages refuse is told by the names that the client's request has for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway_stages import ByteTokenizer, Shard, Stack, running_stack
from plinth.oip.v2 import open_inference_pb2
from plinth.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.rpc.status import from_rpc_error
from plinth.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    tokenization_pb2,
    tokenization_pb2_grpc,
)


def refusing(error: Exception) -> Any:
    async def call(*_: Any) -> Any:
        raise error

    return call


@pytest.fixture
async def stack(
    tmp_path: Path, redis_server: str, redis_client: object, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """Whose tokenizer knows no artifact and no id, and whose shards take nothing."""

    async def refuse(self: Shard, request: Any) -> AsyncIterator[Any]:
        ids = request.input[0].tokens.ids
        raise InvalidArgument("not so", field="input" if ids[0] == 1 else "top_k")
        yield

    monkeypatch.setattr(ByteTokenizer, "Encode", refusing(NotFound("none", field="reference")))
    monkeypatch.setattr(ByteTokenizer, "Decode", refusing(InvalidArgument("none", field="ids")))
    monkeypatch.setattr(Shard, "_generate", refuse)
    async with running_stack(tmp_path, redis_server) as running:
        yield running


async def wrong(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value).field


async def test_by_grpc(stack: Stack) -> None:
    key = (("authorization", f"Bearer {stack.key}"),)
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        tokens = tokenization_pb2_grpc.TokenizationServiceStub(channel)
        generation = generation_pb2_grpc.GenerationServiceStub(channel)
        models = models_pb2_grpc.ModelServiceStub(channel)
        inference = GRPCInferenceServiceStub(channel)
        asked = tokenization_pb2.EncodeRequest(model="gone@1", texts=["a"])
        assert await wrong(tokens.Encode(asked, metadata=key)) == "model"
        decode = tokenization_pb2.DecodeRequest(model="chat")
        assert await wrong(tokens.Decode(decode, metadata=key)) == "sequences"
        for first, field in ((1, "prompt_tokens"), (2, "options.sampling.top_k")):
            request = generation_pb2.CompleteRequest(model="chat")
            request.prompt_tokens.ids.extend((first, 3))
            assert await wrong(generation.Complete(request, metadata=key)) == field
        one = models_pb2.GetModelRequest(name="models/none")
        assert await wrong(models.GetModel(one, metadata=key)) == "name"
        for name, version, field in (("no", "", "name"), ("chat", "9", "version")):
            of = open_inference_pb2.ModelMetadataRequest(name=name, version=version)
            assert await wrong(inference.ModelMetadata(of, metadata=key)) == field
            infer = open_inference_pb2.ModelInferRequest(model_name=name, model_version=version)
            text = infer.inputs.add(name="text_input", datatype="BYTES", shape=[1])
            text.contents.bytes_contents.append(b"a")
            assert await wrong(inference.ModelInfer(infer, metadata=key)) == f"model_{field}"


async def test_by_rest(stack: Stack) -> None:
    async with stack.http() as client:
        for first, field in ((1, "prompt"), (2, "top_k")):
            body = {"model": "chat", "prompt": [first, 3], "max_tokens": 1}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == field
