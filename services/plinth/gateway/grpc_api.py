"""The gRPC API: the gateway's services and the stages', with the REST API's keys and quotas.

The key comes as `authorization: Bearer <key>` in the call's metadata. Health needs none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.gateway import bounded_json, metrics
from plinth.gateway.core import GatewayCore
from plinth.gateway.keys.revocation import RevocationInterceptor
from plinth.gateway.proxy import proxied_services
from plinth.gateway.quotas.interceptor import OWN, QuotaInterceptor
from plinth.gateway.services.generation import GenerationServicer
from plinth.gateway.services.keys import KeyServicer
from plinth.gateway.services.models import ModelServicer
from plinth.gateway.services.open_inference import SERVICE, OpenInferenceServicer
from plinth.gateway.services.operations import OperationsServicer
from plinth.gateway.services.tokenization import TokenizationServicer
from plinth.shared.identity import current_call
from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.rpc.outcomes import outcome
from plinth.shared.rpc.server import GrpcServer
from plinth.shared.rpc.wire import Bounds

BESIDE_BYTES = 64 << 10  # names and parameters, next to a body of the full size


def build_server(core: GatewayCore) -> GrpcServer:
    """The gateway's gRPC server; not started."""

    own = [
        servicer(core).service()
        for servicer in (
            GenerationServicer,
            TokenizationServicer,
            ModelServicer,
            OperationsServicer,
            KeyServicer,
            OpenInferenceServicer,
        )
    ]
    gateway = core.settings.gateway
    stages = proxied_services(core.clients)
    # What may last longer than a key.
    lasting = {
        method: service.scope(method.rpartition("/")[2])
        for service in stages
        for method in service.resumable()
    }
    lasting[f"/{SERVICE}/ModelStreamInfer"] = "inference"
    return GrpcServer(
        [*own, *stages],
        stage="gateway",
        settings=core.settings,
        token=core.token,
        host=gateway.host,
        port=gateway.grpc_port,
        authenticator=core.keyring,
        admitted=[RevocationInterceptor(core.keyring, lasting), QuotaInterceptor(core.quotas)],
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


class RequestsInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls of the gateway's own service as the REST API's requests are counted."""

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        method = details.method.rpartition("/")[2]
        if handler is None or not details.method.startswith(OWN):
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
