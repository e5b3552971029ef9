"""GenerationService: text in, text out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from plinth.gateway import limits
from plinth.gateway.answer_writer import TextEvent
from plinth.gateway.chat_messages import check_messages, normalised
from plinth.gateway.core import GatewayCore
from plinth.gateway.generation import TextRequest
from plinth.gateway.live_preferences import CONSENT, AnswerRecorder
from plinth.gateway.revisions import MODEL_HEADER
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import current_principal, current_request_id
from plinth.shared.rpc.server import GrpcService
from plinth.shared.rpc.status import REQUEST_ID_KEY
from plinth.v1 import generation_pb2, generation_pb2_grpc


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The RPCs; see generation.proto."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.GenerationService",
            lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                self, server
            ),
            validators={"Chat": check_chat, "Complete": check_completion},
        )

    async def Chat(
        self, request: generation_pb2.ChatRequest, context: Any
    ) -> AsyncIterator[generation_pb2.ChatResponse]:
        """A chat completion, streamed."""
        ask = TextRequest(
            request.model,
            normalised(request.messages),
            limits.normalised(request.sampling),
            limits.meant_stops(request.stop),
            prompt_field="messages",
            user=request.user,
        )
        consent = dict(context.invocation_metadata() or ()).get(CONSENT)
        recorder = self._core.preferences.recorder(consent, ask)
        answering = self._answer(ask, generation_pb2.ChatResponse, context, recorder)
        async with aclosing(answering) as answers:
            async for answer in answers:
                yield answer

    async def Complete(
        self, request: generation_pb2.CompleteRequest, context: Any
    ) -> AsyncIterator[generation_pb2.CompleteResponse]:
        """A text completion, streamed."""
        ask = TextRequest(
            request.model,
            request.prompt,
            limits.normalised(request.sampling),
            limits.meant_stops(request.stop),
            user=request.user,
            special_tokens=not request.HasField("special_tokens") or request.special_tokens,
        )
        del request  # the prompt once more
        async with aclosing(self._answer(ask, generation_pb2.CompleteResponse, context)) as answers:
            async for answer in answers:
                yield answer

    async def _answer(
        self,
        ask: TextRequest,
        kind: type[Any],
        context: Any,
        recorder: AnswerRecorder | None = None,
    ) -> Any:
        principal = current_principal()
        async with self._core.session(principal, [ask], recorder) as session:
            context.set_trailing_metadata(
                ((REQUEST_ID_KEY, current_request_id()), (MODEL_HEADER, session.revision))
            )
            prepared = session.prepared[0]
            digest = prepared.model.weights_digest
            first = True
            async with aclosing(session.events()) as events:
                async for _index, event in events:
                    answer = _response(kind, event, digest)
                    if first or event.finish:
                        answer.seed = prepared.sampling.seed
                        first = False
                    yield answer


def _response(kind: type[Any], event: TextEvent, digest: str) -> Any:
    return kind(
        text=event.text,
        tokens=event.tokens,
        finish_reason=event.finish,
        usage=event.usage,
        weights_digest=digest,
    )


def check_chat(request: generation_pb2.ChatRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    check_messages(request.messages)
    _check_common(request)


def check_completion(request: generation_pb2.CompleteRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    limits.check_text(request.prompt, "prompt")
    _check_common(request)


def _check_common(request: generation_pb2.ChatRequest | generation_pb2.CompleteRequest) -> None:
    if not 1 <= len(request.model) <= 256:
        raise InvalidArgument(
            f"model: its name has 1 to 256 characters, not {len(request.model)}", field="model"
        )
    limits.check_text(request.model, "model")
    limits.check_text(request.user, "user")
    limits.check_sampling(request.sampling, "sampling.")
    limits.check_stops(request.stop)
