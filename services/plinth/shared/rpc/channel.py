"""A channel to one replica that carries who calls, under which request id, and until when.

It wraps a plain grpc.aio channel instead of using client interceptors: those start a task per
call and stand between a stream and its cancellation. Retry is gRPC's own, by service config: for
UNAVAILABLE, on unary methods that are idempotent, and on no stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

from plinth.shared import tracing
from plinth.shared.errors import DeadlineExceeded
from plinth.shared.identity import (
    SYSTEM,
    Principal,
    current_call,
    current_request_id,
    new_request_id,
    remaining_s,
)
from plinth.shared.rpc import tls
from plinth.shared.rpc.auth import PRINCIPAL_KEY, TOKEN_KEY, encode_principal
from plinth.shared.rpc.calls import Requests, StageCall
from plinth.shared.rpc.status import REQUEST_ID_KEY
from plinth.shared.settings import Settings
from plinth.shared.settings_sections import RpcSettings

# Whose methods may be called again by themselves where their proto says that they are idempotent.
_SERVICES = (
    "plinth.internal.v1.inference",
    "plinth.internal.v1.tokenizer",
    *(
        f"plinth.v1.{file}"
        for file in [
            "artifacts",
            "deployments",
            "generation",
            "jobs",
            "models",
            "operations",
            "preferences",
            "rewards",
            "runs",
            "tokenization",
        ]
    ),
)
STREAM_WINDOW_BYTES = 128 << 10


@cache
def idempotent_methods() -> frozenset[tuple[str, str]]:
    """(service, method) of the unary methods that `idempotency_level` says may be sent twice."""
    files = [import_module(f"{name}_pb2").DESCRIPTOR for name in _SERVICES]
    return frozenset(
        (service.full_name, method.name)
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if method.GetOptions().idempotency_level and not _streams(method)
    ) | {("grpc.health.v1.Health", "Check")}


def _streams(method: MethodDescriptor) -> bool:
    return bool(method.client_streaming or method.server_streaming)


def service_config() -> str:
    """gRPC service config as JSON: up to 4 attempts within about a second and a half, of unary
    methods that may be sent twice: reads, and writes that are idempotent by an id in them."""
    names = [
        {"service": service, "method": method} for service, method in sorted(idempotent_methods())
    ]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})


def client_options(rpc: RpcSettings) -> list[tuple[str, Any]]:
    """gRPC core's channel arguments; times in ms."""
    return [
        ("grpc.service_config", service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", rpc.max_message_bytes),
        ("grpc.max_send_message_length", rpc.max_message_bytes),
        ("grpc.keepalive_time_ms", int(rpc.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(rpc.keepalive_timeout_s * 1000)),
        # Of each ping; gRPC takes the longer one, and this is a minute by itself.
        ("grpc.http2.ping_timeout_ms", int(rpc.keepalive_timeout_s * 1000)),
        # By its word gRPC sends two pings without data and no more, and a watch may have none for
        # hours.
        ("grpc.http2.max_pings_without_data", 0),
        # What a stream may send ahead of its reader. Left alone, gRPC lets that grow to megabytes
        # for each stream of a fast connection.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        # A replica that comes back is found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # In spite of its name the least time that one attempt to connect has: a lost SYN is sent
        # again after a second, and a full machine may take as long to answer.
        ("grpc.min_reconnect_backoff_ms", 3_000),
        # Each channel its own connection: a stuck one harms nobody else.
        ("grpc.use_local_subchannel_pool", 1),
        # Stages meet directly, whatever proxy the machine uses for the web.
        ("grpc.enable_http_proxy", 0),
    ]


def open_transport(address: str, settings: Settings, stage: str) -> grpc.aio.Channel:
    """A channel with our options; it carries no token. With settings.tls the other side must be
    `plinth-<stage>` by a certificate of our authority, wherever its address is: replicas move."""
    options = client_options(settings.rpc)
    if not settings.tls.on:
        return grpc.aio.insecure_channel(address, options=options)
    options.append(("grpc.ssl_target_name_override", tls.server_name(stage)))
    return grpc.aio.secure_channel(address, tls.channel_credentials(settings.tls), options=options)


def open_channel(
    address: str,
    *,
    stage: str,
    settings: Settings,
    token: str,
    principal: Principal | None = None,
) -> grpc.aio.Channel:
    """A channel to `address`, for generated stubs. Close it. Its calls raise PlinthErrors alone.

    Each call carries the token, the request id of the calling context, and `principal`; without
    one, the principal of the calling context, and outside of any call SYSTEM. It ends when the
    calling context's deadline does, or the caller's `timeout` if that is sooner; a unary call
    with neither gets settings.rpc.default_deadline_s.
    """
    return StageChannel(
        open_transport(address, settings, stage),
        stage=stage,
        settings=settings,
        token=token,
        principal=principal,
    )


class StageChannel(grpc.aio.Channel):
    """A view of a transport with an identity; several may share one transport."""

    def __init__(
        self,
        transport: grpc.aio.Channel,
        *,
        stage: str,
        settings: Settings,
        token: str,
        principal: Principal | None,
        began: Callable[[Any], None] | None = None,
    ) -> None:
        """began: told of each call that is made."""
        self.stage = stage
        self.began = began
        self._transport = transport
        self._token = token
        self._principal = principal
        self._default_s = settings.rpc.default_deadline_s
        self._max_bytes = settings.rpc.max_message_bytes

    def call_metadata(self, given: Iterable[tuple[str, Any]] | None) -> tuple[tuple[str, Any], ...]:
        """The caller's own metadata with ours; ours wins."""
        ours: tuple[tuple[str, Any], ...] = (
            (REQUEST_ID_KEY, current_request_id() or new_request_id()),
            (TOKEN_KEY, self._token),
            (PRINCIPAL_KEY, encode_principal(self._caller())),
        )
        if trace := tracing.traceparent():
            ours = (*ours, (tracing.TRACEPARENT, trace))
        mine = {key for key, _ in ours}
        return (*(pair for pair in given or () if pair[0] not in mine), *ours)

    def _caller(self) -> Principal:
        if self._principal is not None:
            return self._principal
        call = current_call()
        return SYSTEM if call is None or call.principal is None else call.principal

    def timeout_s(self, given: float | None, *, stream: bool) -> float | None:
        """Seconds that the call has: the sooner of what the caller and its own caller allow.

        DeadlineExceeded when none are left.
        """
        bounds = [bound for bound in (given, remaining_s()) if bound is not None]
        if bounds:
            if min(bounds) <= 0:
                # gRPC takes 0 for no deadline at all, and a tiny one may still be answered.
                raise DeadlineExceeded(f"the time was over before {self.stage} was called")
            return min(bounds)
        return None if stream else self._default_s

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_unary", method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_unary", method, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_stream", method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_stream", method, *args, **kwargs)

    def _method(
        self,
        kind: str,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        make = getattr(self._transport, kind)
        inner = make(method, None, response_deserializer, _registered_method)
        where = f"{self.stage} ({method.rpartition('/')[2]})"
        requests = Requests(request_serializer, self._max_bytes, where)
        return _Method(self, inner, requests, kind)

    async def __aenter__(self) -> StageChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes the transport, and with it every channel that shares it."""
        await self._transport.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._transport.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._transport.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._transport.channel_ready()


class _Method:
    """A multi-callable that adds identity and deadline to each call."""

    def __init__(self, channel: StageChannel, inner: Any, requests: Requests, kind: str) -> None:
        self._channel = channel
        self._inner = inner
        self._requests = requests
        self._takes_many, self._gives_many = (word == "stream" for word in kind.split("_"))

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, Any]] | None = None,
        **kwargs: Any,
    ) -> StageCall:
        asked = None
        if not self._takes_many:
            request = self._requests.written(request)
        elif request is not None:
            request = asked = self._requests.each(request)
        call = self._inner(
            request,
            timeout=self._channel.timeout_s(timeout, stream=self._gives_many),
            metadata=self._channel.call_metadata(metadata),
            **kwargs,
        )
        if self._channel.began is not None:
            self._channel.began(call)
        return StageCall(call, self._requests, asked)
