"""The gRPC server that every stage and the gateway open.

Health: "" is SERVING while the process lives; a service's name is SERVING while it is ready, and
NOT_SERVING before draining begins. Without a credential nothing but health answers, reflection
included. Listens on loopback unless told otherwise. Knows no stage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from plinth.shared import tracing
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.rpc.auth import Authenticator, TokenAuthenticator
from plinth.shared.rpc.authorization import HEALTH, REFLECTION
from plinth.shared.rpc.first_send import FirstSendInterceptor
from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.rpc.interceptors import interceptors
from plinth.shared.rpc.reflection import add_reflection
from plinth.shared.rpc.resuming import is_resumable
from plinth.shared.rpc.spans import TracingInterceptor
from plinth.shared.rpc.status import fail
from plinth.shared.rpc.tls import server_credentials
from plinth.shared.rpc.validation import Validator
from plinth.shared.rpc.wire import Bounds
from plinth.shared.settings import Settings
from plinth.shared.settings_sections import RpcSettings, ServerTlsSettings, TlsSettings
from plinth.shared.telemetry import get_logger
from plinth.v1 import options_pb2

_log = get_logger("plinth.rpc")
# Beyond the grace: calls that were cancelled still have to say so.
_STOP_SLACK_S = 10.0
_NEVER_MS = (1 << 31) - 1  # gRPC core's word for no limit


@dataclass(frozen=True)
class GrpcService:
    """One service as a server carries it.

    name: full name, "plinth.internal.v1.InferenceService".
    add: registers the servicer, `lambda server: add_XServicer_to_server(servicer, server)`.
    scopes: scope that each method needs, by method name; "*" for all others; "" is any principal.
        None: as the proto says (`option (plinth.v1.scope)`).
    validators: by method name, called with each request message; raise InvalidArgument.
    unhurried: names of unary methods that bound their own time. Others get settings.rpc's default
        where their client sets no deadline.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    scopes: Mapping[str, str] | None = None
    validators: Mapping[str, Validator] = field(default_factory=dict)
    unhurried: Sequence[str] = ()

    def methods(self) -> list[str]:
        """Method names, from the proto."""
        return [method.name for method in self._descriptor().methods]

    def resumable(self) -> list[str]:
        """Full names of the methods whose streams can go on elsewhere."""
        methods = [method for method in self._descriptor().methods if is_resumable(method)]
        return [f"/{self.name}/{method.name}" for method in methods]

    def _descriptor(self) -> ServiceDescriptor:
        try:
            found: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(self.name)
        except KeyError:
            raise FailedPrecondition(
                f"no proto defines {self.name}; import its generated module first"
            ) from None
        return found

    def scope(self, method: str) -> str:
        """What `method` needs. FailedPrecondition when nobody said: that is never "nothing"."""
        if self.scopes is None:
            options = self._descriptor().methods_by_name[method].GetOptions()
            said = options.HasExtension(options_pb2.scope)
            scope = options.Extensions[options_pb2.scope] if said else None
        else:
            scope = self.scopes.get(method, self.scopes.get("*"))
        if scope is None:
            raise FailedPrecondition(f"{self.name}/{method} has no scope; name one, or '*'")
        return scope


class GrpcServer:
    """One listener with its services.

    token: the cluster's; without it only health answers. `authenticator` takes its place where
    callers prove themselves in another way (the gateway's API keys). tls: the certificate that it
    shows; of TlsSettings also the authority that callers' must come from. health_port: a second
    listener that answers grpc.health.v1 and nothing else, without TLS; 0 for none. options: of
    gRPC's core, stronger than those of every server. counting, admitted: as `interceptors` takes
    them. bounds: of each request message, where strangers call. slow_reader_s: how long a message
    of a stream waits to be read; 0 for settings.rpc's.
    """

    def __init__(
        self,
        services: Sequence[GrpcService],
        *,
        stage: str,
        settings: Settings,
        token: str,
        host: str | None = None,
        port: int = 0,
        authenticator: Authenticator | None = None,
        tls: TlsSettings | ServerTlsSettings | None = None,
        health_port: int = 0,
        options: Sequence[tuple[str, Any]] = (),
        counting: Sequence[grpc.aio.ServerInterceptor] = (),
        admitted: Sequence[grpc.aio.ServerInterceptor] = (),
        slow_reader_s: float = 0.0,
        bounds: Bounds | None = None,
    ) -> None:
        self.stage = stage
        self._tls = tls if tls is not None and tls.on else None
        self._health_port = health_port
        self._health_server: grpc.aio.Server | None = None
        self.host = settings.host if host is None else host
        self.port = port
        self._services = list(services)
        self._health = health.aio.HealthServicer()
        self._idle_calls = _IdleCalls(
            frozenset(path for service in services for path in service.resumable())
        )
        self._stopped = False
        paths = {
            f"/{service.name}/{method}": (service, method)
            for service in services
            for method in service.methods()
        }
        # Each once: of two by one name gRPC takes the first.
        self._options = list((dict(server_options(settings.rpc)) | dict(options)).items())
        self._interceptors = [
            FirstSendInterceptor(),
            self._idle_calls,
            *interceptors(
                methods=frozenset([*paths, f"{HEALTH}Check", f"{HEALTH}Watch"]),
                scopes={path: service.scope(name) for path, (service, name) in paths.items()},
                validators={
                    path: service.validators[name]
                    for path, (service, name) in paths.items()
                    if name in service.validators
                },
                authenticate=authenticator or TokenAuthenticator(token),
                default_deadline_s=settings.rpc.default_deadline_s,
                unhurried=frozenset(
                    path for path, (service, name) in paths.items() if name in service.unhurried
                ),
                slow_reader_s=slow_reader_s or settings.rpc.slow_reader_s,
                bounds=bounds,
                counting=counting,
                admitted=[*([TracingInterceptor(stage)] if tracing.on() else []), *admitted],
            ),
        ]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listens and returns the port. FailedPrecondition when the port is taken."""
        server = grpc.aio.server(options=self._options, interceptors=self._interceptors)
        for service in self._services:
            service.add(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.name for service in self._services]
        add_reflection(server, [*names, health.SERVICE_NAME])
        await self.set_ready(False)
        where = f"[{self.host}]" if ":" in self.host else self.host
        try:
            port = await self._listen(server, f"{where}:{self.port}", self._tls)
            if self._health_port:
                await self._serve_health(f"{where}:{self._health_port}")
        except BaseException:
            await server.stop(0)
            raise
        await server.start()
        self.port, self._server = port, server
        return port

    async def _listen(
        self,
        server: grpc.aio.Server,
        where: str,
        tls: TlsSettings | ServerTlsSettings | None = None,
    ) -> int:
        try:
            if tls is None:
                return server.add_insecure_port(where)
            return server.add_secure_port(where, server_credentials(tls, self.stage))
        except RuntimeError as error:
            raise FailedPrecondition(
                f"{self.stage} can't listen on {where}: is the port in use, or the "
                "address not this machine's? Choose another port, or 0 for any free one",
                reason="PORT_IN_USE",
            ) from error

    async def _serve_health(self, where: str) -> None:
        server = grpc.aio.server(options=self._options)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            await self._listen(server, where)
        except BaseException:
            await server.stop(0)
            raise
        await server.start()
        self._health_server = server

    async def set_ready(self, ready: bool) -> None:
        """Sets the health of every service; "" stays SERVING while the process lives."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready and not self._stopped
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in self._services:
            await self._health.set(service.name, status)

    async def stop(self, grace_s: float) -> None:
        """NOT_SERVING first, then no new calls; running ones get `grace_s` and are cancelled."""
        self._stopped = True
        await self.set_ready(False)
        if self._server is None:
            return  # never started
        stopping = asyncio.create_task(self._server.stop(grace_s))
        await asyncio.sleep(0)  # let the listener close before its watchers are sent away
        self._idle_calls.end()
        done, _ = await asyncio.wait({stopping}, timeout=grace_s + _STOP_SLACK_S)
        if self._health_server is not None:
            await self._health_server.stop(0)  # last: a probe hears NOT_SERVING until then
        if done:
            stopping.result()
        else:  # a drain must end, whatever gRPC's core waits for
            stopping.cancel()
            _log.error("the gRPC server did not end in time", stage=self.stage, grace_s=grace_s)


class _IdleCalls(grpc.aio.ServerInterceptor):
    """Health watches, reflection streams and `resumable` ones (full method names): they need not
    end by themselves, so that a drain which waited for them would always take the whole grace.
    Who reads a stream that can be resumed goes on elsewhere at once."""

    def __init__(self, resumable: frozenset[str]) -> None:
        self._resumable = resumable
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        endless = (
            details.method.startswith((HEALTH, *REFLECTION)) or details.method in self._resumable
        )
        if handler is None or not endless:
            return handler

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                yield
            except asyncio.CancelledError:
                if not self._stopping or context.cancelled():
                    raise
                task.uncancel()  # by `end`: the call still needs its status, or it stays open
                await fail(context, Unavailable("the server is stopping"))
            finally:
                self._tasks.discard(task)

        return wrap(handler, layer)

    def end(self) -> None:
        """Ends them all with UNAVAILABLE."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()


def server_options(rpc: RpcSettings) -> list[tuple[str, Any]]:
    """gRPC core's channel arguments; times in ms."""
    keepalive_ms = int(rpc.keepalive_s * 1000)
    return [
        ("grpc.max_receive_message_length", rpc.max_message_bytes),
        ("grpc.max_send_message_length", rpc.max_message_bytes),
        ("grpc.max_concurrent_streams", rpc.max_concurrent_streams),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", int(rpc.keepalive_timeout_s * 1000)),
        # Of each ping; gRPC takes the longer one, and this is a minute by itself.
        ("grpc.http2.ping_timeout_ms", int(rpc.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients may ping as often as we do, and each half minute in any case; a server that
        # allowed less would close on them.
        ("grpc.http2.min_ping_interval_without_data_ms", min(keepalive_ms // 2, 10_000)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", min(keepalive_ms // 2, 10_000)),
        # New calls then take a new connection; those in flight stay, since gRPC would end them
        # without a word of why. What bounds a call is its deadline, its end or the server's drain.
        ("grpc.max_connection_age_ms", int(rpc.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", _NEVER_MS),
        # Two processes on one port would share its calls silently.
        ("grpc.so_reuseport", 0),
    ]
