"""TokenizationService at the front door: what the tokenizer stage answers, as clients know it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway_stages import Stack, running_stack
from plinth.gateway.limits import MAX_TEXT_BYTES
from plinth.internal.v1 import tokenizer_pb2
from plinth.v1 import tokenization_pb2 as pb
from plinth.v1 import tokenization_pb2_grpc


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


async def test_texts_become_ids_and_ids_texts(stack: Stack) -> None:
    texts, key = ["Größe", "", "a" * 1000], (("authorization", f"Bearer {stack.key}"),)
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(channel)
        made = await stub.Encode(pb.EncodeRequest(model="chat", texts=texts), metadata=key)
        assert [bytes(one.ids).decode() for one in made.sequences] == texts
        # Nothing of what the stage says beside it comes through.
        rebuilt = pb.EncodeResponse(
            sequences=[pb.TokenSequence(ids=one.ids) for one in made.sequences]
        )
        assert made.SerializeToString() == rebuilt.SerializeToString()
        back = await stub.Decode(
            pb.DecodeRequest(model="chat", sequences=made.sequences), metadata=key
        )
        assert list(back.texts) == texts


async def test_more_text_than_one_call_encodes(stack: Stack) -> None:
    key = (("authorization", f"Bearer {stack.key}"),)
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = tokenization_pb2_grpc.TokenizationServiceStub(channel)
        most = MAX_TEXT_BYTES - 20
        fits = pb.EncodeRequest(model="chat", texts=["a" * (most // 2)] * 2)
        assert len((await stub.Encode(fits, metadata=key)).sequences) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(
                pb.EncodeRequest(model="chat", texts=["a" * most, "b" * 40]), metadata=key
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "bytes in all" in (caught.value.details() or "")


@pytest.mark.parametrize("message", ["EncodeResponse", "TokenSequence"])
def test_what_is_read_as_our_own_is_alike_on_the_wire(message: str) -> None:
    ours = pb.DESCRIPTOR.message_types_by_name[message]
    name = {"TokenSequence": "TokenIds"}.get(message, message)
    theirs = tokenizer_pb2.DESCRIPTOR.message_types_by_name[name]
    assert ours.fields
    for field in ours.fields:
        same = theirs.fields_by_number[field.number]
        assert (same.name, same.type, same.is_repeated) == (
            *(field.name, field.type),
            field.is_repeated,
        )
