"""The gRPC API: GatewayService and the stages' services, with the REST API's keys and quotas.

The key comes as `authorization: Bearer <key>` in the call's metadata. Health needs none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from plinth.gateway import bounded_json, limits, metrics
from plinth.gateway.answer_writer import TextEvent
from plinth.gateway.chat_messages import check_messages, normalised
from plinth.gateway.core import GatewayCore
from plinth.gateway.generation import TextRequest
from plinth.gateway.live_preferences import CONSENT, AnswerRecorder
from plinth.gateway.proxy import proxied_services
from plinth.gateway.quota_interceptor import QuotaInterceptor
from plinth.gateway.revisions import MODEL_HEADER
from plinth.gateway.revocation import RevocationInterceptor
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import current_call, current_principal, current_request_id
from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.rpc.outcomes import outcome
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.rpc.status import REQUEST_ID_KEY
from plinth.shared.rpc.wire import Bounds
from plinth.v1 import gateway_pb2 as pb
from plinth.v1 import gateway_pb2_grpc as rpc

_SERVICE = pb.DESCRIPTOR.services_by_name["GatewayService"].full_name
BESIDE_BYTES = 64 << 10  # names and parameters, next to a body of the full size


def build_server(core: GatewayCore) -> GrpcServer:
    """The gateway's gRPC server; not started."""

    def add(server: grpc.aio.Server) -> None:
        rpc.add_GatewayServiceServicer_to_server(GatewayServicer(core), server)

    own = GrpcService(
        "plinth.v1.GatewayService",
        add,
        {"GetStatus": "deployments", "*": "inference"},
        validators={"Chat": check_chat, "Complete": check_completion},
    )
    gateway = core.settings.gateway
    stages = proxied_services(core.clients)
    watches = [method for service in stages for method in service.resumable()]
    return GrpcServer(
        [own, *stages],
        stage="gateway",
        settings=core.settings,
        token=core.token,
        host=gateway.host,
        port=gateway.grpc_port,
        authenticator=core.keyring,
        admitted=[RevocationInterceptor(core.keyring, watches), QuotaInterceptor(core.quotas)],
        slow_reader_s=gateway.slow_client_s,
        bounds=Bounds(fields=bounded_json.MAX_VALUES, packed=bounded_json.MAX_INTEGERS),
        tls=gateway.tls,
        counting=[RequestsInterceptor()],
        options=[
            # A connection that is one too many is closed at once; one that doesn't come to speak
            # HTTP/2, after this; calls carry a key and little else.
            ("grpc.max_allowed_incoming_connections", gateway.max_connections),
            ("grpc.server_handshake_timeout_ms", round(gateway.head_timeout_s * 1000)),
            ("grpc.max_metadata_size", gateway.max_header_bytes),
            ("grpc.absolute_max_metadata_size", gateway.max_header_bytes),
            # As by REST: eight times as much, which stages send each other, held the loop for two
            # seconds.
            ("grpc.max_receive_message_length", gateway.max_body_bytes + BESIDE_BYTES),
        ],
    )


class GatewayServicer(rpc.GatewayServiceServicer):
    """Text in, text out."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """Served models by name."""
        return pb.ListModelsResponse(
            models=[
                pb.ServedModel(
                    name=model.name,
                    artifact=model.artifact,
                    weights_digest=model.weights_digest,
                    context_length=model.context_length,
                    ready_shards=model.ready_shards,
                )
                for model in await self._core.catalogue.models()
            ]
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Replicas, models, queues, canaries. Unavailable while Redis is away."""
        return await self._core.status.read()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:
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
        answering = self._answer(ask, pb.ChatResponse, context, recorder)
        async with aclosing(answering) as answers:
            async for answer in answers:
                yield answer

    async def Complete(
        self, request: pb.CompleteRequest, context: Any
    ) -> AsyncIterator[pb.CompleteResponse]:
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
        async with aclosing(self._answer(ask, pb.CompleteResponse, context)) as answers:
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


class RequestsInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls of the gateway's own service as the REST API's requests are counted."""

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        service, _, method = details.method.lstrip("/").partition("/")
        if handler is None or service != _SERVICE:
            return handler

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            with outcome(context, lambda code: _count(context, method, code)):
                yield

        return wrap(handler, layer)


def _count(context: Context, method: str, code: str) -> None:
    remaining = context.time_remaining()
    if code == "DEADLINE_EXCEEDED" and remaining is not None and remaining <= 0:
        code = "CANCELLED"  # a client that gives up by its own clock hangs up
    call = current_call()
    principal = None if call is None else call.principal
    tenant = "" if principal is None else metrics.tenant_label(principal.tenant)
    metrics.REQUESTS.labels("grpc", method, code, tenant).inc()


def _response(kind: type[Any], event: TextEvent, digest: str) -> Any:
    return kind(
        text=event.text,
        tokens=event.tokens,
        finish_reason=event.finish,
        usage=event.usage,
        weights_digest=digest,
    )


def check_chat(request: pb.ChatRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    check_messages(request.messages)
    _check_common(request)


def check_completion(request: pb.CompleteRequest) -> None:
    """InvalidArgument unless REST would take it too."""
    limits.check_text(request.prompt, "prompt")
    _check_common(request)


def _check_common(request: pb.ChatRequest | pb.CompleteRequest) -> None:
    if not 1 <= len(request.model) <= 256:
        raise InvalidArgument(
            f"model: its name has 1 to 256 characters, not {len(request.model)}", field="model"
        )
    limits.check_text(request.model, "model")
    limits.check_text(request.user, "user")
    limits.check_sampling(request.sampling, "sampling.")
    limits.check_stops(request.stop)
