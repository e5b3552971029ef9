"""TokenizationService: the tokenizer stage as clients see it."""

from __future__ import annotations

from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.retries import with_retries
from plinth.gateway.generation.texts import STAGE
from plinth.gateway.openai.chat_messages import check_messages, normalised
from plinth.gateway.services.generation_requests import MODELS, check_model, model_id
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.errors import NotFound, PlinthError
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
            validators={"Encode": _check, "Decode": _check, "ApplyChatTemplate": _check_chat},
        )

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:
        """Texts to ids."""
        asked = tokenizer_pb2.EncodeRequest(
            model=await self._artifact(request.model),
            texts=request.texts,
            parse_special=request.parse_special_tokens,
            add_special=request.add_special_tokens,
        )
        answer = await self._ask(lambda stub: stub.Encode(asked))
        return pb.EncodeResponse(
            sequences=[pb.TokenSequence(ids=one.ids) for one in answer.sequences]
        )

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:
        """Ids to texts."""
        asked = tokenizer_pb2.DecodeRequest(
            model=await self._artifact(request.model),
            sequences=[tokenizer_pb2.TokenIds(ids=one.ids) for one in request.sequences],
            skip_special=request.skip_special_tokens,
        )
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
        core = self._core
        try:
            return await with_retries(
                core.clients,
                STAGE,
                lambda channel: work(tokenizer_pb2_grpc.TokenizerServiceStub(channel)),
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


def _check(request: pb.EncodeRequest | pb.DecodeRequest) -> None:
    check_model(request.model)


def _check_chat(request: pb.ApplyChatTemplateRequest) -> None:
    check_model(request.model)
    check_messages(request.messages)
