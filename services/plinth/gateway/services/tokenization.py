"""TokenizationService: the tokenizer stage as clients see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.retries import with_retries
from plinth.gateway.generation.texts import STAGE
from plinth.gateway.limits import MAX_TEXT_BYTES
from plinth.gateway.openai.chat_messages import check_messages, normalised
from plinth.gateway.services.generation_requests import MODELS, check_model, model_id
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.errors import InvalidArgument, NotFound, PlinthError
from plinth.shared.identity import current_principal
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import tokenization_pb2 as pb
from plinth.v1 import tokenization_pb2_grpc as rpc

# What the tokenizer stage, and the store behind it, complain of, by the names of our requests.
_OURS = {"reference": "model", "ids": "sequences", "conversations": "messages"}


class TokenizationServicer(rpc.TokenizationServiceServicer):
    """The RPCs; see tokenization.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.TokenizationService",
            lambda server: rpc.add_TokenizationServiceServicer_to_server(self, server),
            validators={"Encode": _check_texts, "Decode": _check, "ApplyChatTemplate": _check_chat},
        )

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:
        """Texts to ids."""
        asked = tokenizer_pb2.EncodeRequest(
            model=await self._artifact(request.model),
            parse_special=request.parse_special_tokens,
            add_special=request.add_special_tokens,
        )
        asked.texts.MergeFrom(request.texts)
        response: pb.EncodeResponse = await self._asked(lambda channel: _encode(channel)(asked))
        # There may be millions of ids: parsed in this turn of the loop, written in the next.
        await asyncio.sleep(0)
        response.DiscardUnknownFields()
        return response

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:
        """Ids to texts."""
        asked = tokenizer_pb2.DecodeRequest(
            model=await self._artifact(request.model), skip_special=request.skip_special_tokens
        )
        for one in request.sequences:
            asked.sequences.add().ids.MergeFrom(one.ids)
        answer = await self._ask(lambda stub: stub.Decode(asked))
        return pb.DecodeResponse(texts=answer.texts)

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Any
    ) -> pb.ApplyChatTemplateResponse:
        """A conversation to a prompt."""
        asked = tokenizer_pb2.ApplyChatTemplateRequest(
            model=await self._artifact(request.model),
            messages=normalised(request.messages),
            add_generation_prompt=request.add_generation_prompt,
        )
        answer = await self._ask(lambda stub: stub.ApplyChatTemplate(asked))
        return pb.ApplyChatTemplateResponse(
            ids=answer.ids, text=answer.text, stop_token_ids=answer.stop_token_ids
        )

    async def _ask(self, work: Any) -> Any:
        return await self._asked(
            lambda channel: work(tokenizer_pb2_grpc.TokenizerServiceStub(channel))
        )

    async def _asked(self, work: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        core = self._core
        try:
            return await with_retries(
                core.clients,
                STAGE,
                work,
                current_principal(),
                core.settings.gateway.patience_s,
            )
        except PlinthError as error:
            error.field = _OURS.get(error.field, error.field)
            raise

    async def _artifact(self, name: str) -> str:
        """The artifact that is meant: the revision of a served model, or the reference itself."""
        if "@" in name or ":" in name:
            return name
        try:
            return (await self._core.catalogue.get(model_id(name))).artifact
        except NotFound:
            if name.startswith(MODELS):
                raise
            return name  # of an artifact that nobody serves


def _encode(channel: grpc.aio.Channel) -> Any:
    """TokenizerService.Encode, whose response is read as ours: of its fields that ours has numbers
    and types are the same, and what was read twice would take its memory twice."""
    method = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].methods_by_name["Encode"]
    return channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=tokenizer_pb2.EncodeRequest.SerializeToString,
        response_deserializer=pb.EncodeResponse.FromString,
    )


def _check(request: pb.EncodeRequest | pb.DecodeRequest) -> None:
    check_model(request.model)


def _check_texts(request: pb.EncodeRequest) -> None:
    check_model(request.model)
    # Its own size is that of its texts, give or take a few bytes each: they aren't measured one by
    # one, in which each would become a string of Python's.
    size = request.ByteSize()
    if size > MAX_TEXT_BYTES:
        raise InvalidArgument(
            f"texts: {size} bytes in all, at most {MAX_TEXT_BYTES} are encoded in one call; make "
            "several of it",
            field="texts",
        )


def _check_chat(request: pb.ApplyChatTemplateRequest) -> None:
    check_model(request.model)
    check_messages(request.messages)
