"""GenerationService: text in, text out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.generator import TextRequest
from plinth.gateway.generation.selection import Selection
from plinth.gateway.preferences.live import CONSENT, AnswerRecorder
from plinth.gateway.services.answers import Answers
from plinth.gateway.services.generation_requests import (
    ChatRequest,
    chat_ask,
    check_chat,
    check_completion,
    completion_ask,
    selection,
)
from plinth.shared.answer_ids import CHAT, COMPLETION
from plinth.shared.identity import current_principal
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import generation_pb2 as pb
from plinth.v1 import generation_pb2_grpc as rpc


class GenerationServicer(rpc.GenerationServiceServicer):
    """The RPCs; see generation.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.GenerationService",
            lambda server: rpc.add_GenerationServiceServicer_to_server(self, server),
            validators={
                "Chat": check_chat,
                "StreamChat": check_chat,
                "Complete": check_completion,
                "StreamComplete": check_completion,
            },
            unhurried=("Chat", "Complete"),
        )

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:
        """A chat completion."""
        ask, wanted = chat_ask(request), selection(request)
        # The best of several is no sample of the model.
        recorder = self._recorder(request, ask, context) if wanted is None else None
        answer = await self._whole(ask, wanted, pb.ChatResponse, CHAT, recorder)
        assert isinstance(answer, pb.ChatResponse)
        return answer

    async def StreamChat(
        self, request: pb.StreamChatRequest, context: Any
    ) -> AsyncIterator[pb.StreamChatResponse]:
        """A chat completion, streamed."""
        ask = chat_ask(request)
        recorder = self._recorder(request, ask, context)
        async with aclosing(self._stream(ask, pb.StreamChatResponse, CHAT, recorder)) as pieces:
            async for piece in pieces:
                yield piece

    async def Complete(self, request: pb.CompleteRequest, context: Any) -> pb.CompleteResponse:
        """A text completion."""
        ask, wanted = completion_ask(request), selection(request)
        del request  # the prompt once more
        answer = await self._whole(ask, wanted, pb.CompleteResponse, COMPLETION)
        assert isinstance(answer, pb.CompleteResponse)
        return answer

    async def StreamComplete(
        self, request: pb.StreamCompleteRequest, context: Any
    ) -> AsyncIterator[pb.StreamCompleteResponse]:
        """A text completion, streamed."""
        ask = completion_ask(request)
        del request  # the prompt once more
        async with aclosing(self._stream(ask, pb.StreamCompleteResponse, COMPLETION)) as pieces:
            async for piece in pieces:
                yield piece

    def _recorder(
        self, request: ChatRequest, ask: TextRequest, context: Any
    ) -> AnswerRecorder | None:
        consent = dict(context.invocation_metadata() or ()).get(CONSENT)
        return self._core.preferences.recorder(consent, ask)

    async def _stream(
        self,
        ask: TextRequest,
        kind: type[Any],
        prefix: str,
        recorder: AnswerRecorder | None = None,
    ) -> Any:
        async with (
            self._core.session(current_principal(), [ask], recorder) as session,
            aclosing(Answers(session, prefix).stream(kind)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def _whole(
        self,
        ask: TextRequest,
        wanted: Selection | None,
        kind: type[Any],
        prefix: str,
        recorder: AnswerRecorder | None = None,
    ) -> Any:
        async with self._core.session(current_principal(), [ask], recorder, wanted) as session:
            answers = Answers(session, prefix)
            made = await answers.collected()
            chosen = []
            if wanted is not None:
                prepared = session.prepared[0]
                chosen = await self._core.chooser.choose(prepared, ask.prompt, wanted, made)
            return await answers.whole(kind, made, chosen)
