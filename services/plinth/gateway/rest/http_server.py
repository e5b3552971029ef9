"""The REST API's listener: uvicorn with bounds on its connections, and TLS where it is set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from plinth.gateway.rest.http_protocol import Connections, HttpProtocol
from plinth.gateway.rest.slow_clients import FAREWELL_S, SlowClients
from plinth.shared.errors import FailedPrecondition
from plinth.shared.rpc import tls
from plinth.shared.settings_sections import GatewaySettings, ServerTlsSettings
from plinth.shared.telemetry import get_logger

CERTIFICATE_POLL_S = 5.0
SEND_BUFFER_BYTES = 256 << 10  # of a connection: at 100 ms from its client, 5 MB/s
_OTHER_FILES = 512  # that this process opens beside its clients' connections
# uvicorn's line for what is no HTTP, which anybody can make it write; it is counted as a 400.
_MALFORMED = "Invalid HTTP request received."
_log = get_logger("plinth.gateway")


def listen(host: str, port: int, slow_client_s: float) -> socket.socket:
    """A bound socket; FailedPrecondition that names the setting when the port is taken.

    slow_client_s: how long what was sent may wait for a client to take it, also where nobody
    waits any more: behind an answer's end, and on a connection that is being closed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that it is TCP, and has small writes sent at once; else each
    # answer of two writes would wait 40 ms for the client's acknowledgement of the first.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Left alone, the kernel takes megabytes for a client that doesn't read.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from their listener
        waits_ms = int((slow_client_s + FAREWELL_S) * 2000)  # who waits has the first word
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, waits_ms)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise FailedPrecondition(
            f"the gateway can't listen on {host}:{port}: {error.strerror}; choose another with "
            "PLINTH_GATEWAY__PORT, or 0 for any free one",
            reason="PORT_IN_USE",
            field="gateway.port",
        ) from error
    return sock


def _is_ours(record: logging.LogRecord) -> bool:
    return record.msg != _MALFORMED


class HttpServer(uvicorn.Server):
    """Serves `app` until `should_exit`; leaves signals to its caller, which drains gRPC as well.

    FailedPrecondition for a certificate that can't be used.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        super().__init__(
            uvicorn.Config(
                SlowClients(app, settings.slow_client_s),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=round(settings.keep_alive_s),
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_is_ours)  # once, however often
        self._settings = settings
        self._connections = Connections(_room(settings.max_connections))
        self._certificate = Certificate(settings.tls) if settings.tls.on else None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with a protocol that has bounds, and one on TLS handshakes."""
        await self.lifespan.startup()
        context = self._certificate.context if self._certificate is not None else None
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=sock,
                ssl=context,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._settings.head_timeout_s if context else None,
            )
            for sock in sockets or []
        ]
        self.started = True

    async def keep_certificate(self) -> None:
        """Takes renewed certificates up, until cancelled."""
        while self._certificate is not None:
            await asyncio.sleep(CERTIFICATE_POLL_S)
            await asyncio.to_thread(self._certificate.refresh)

    def _protocol(self) -> HttpProtocol:
        return HttpProtocol(
            self.config,
            self.server_state,
            self.lifespan.state,
            self._settings,
            self._connections,
        )


class Certificate:
    """The certificate of a listener. context: the listener's, of which each new connection is given
    what the files were when they last were good."""

    def __init__(self, files: ServerTlsSettings) -> None:
        self._files = files
        self._current = self.context = self._loaded()
        self._seen = tls.stamp(files)
        self.context.sni_callback = self._give

    def refresh(self) -> None:
        """Reads files that changed. A certificate that is wrong is logged, and the last stays."""
        try:
            if (now := tls.stamp(self._files)) != self._seen:
                # A context of its own: one that is in use has no key for a moment, and for good
                # where the files change between one and the other.
                self._current = self._loaded()
                self._seen = now
        except (FailedPrecondition, OSError) as error:
            _log.error("the gateway's renewed certificate is not taken", error=str(error))

    def _give(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        tls.check(self._files)
        assert self._files.certificate is not None
        try:
            context.load_cert_chain(self._files.certificate, self._files.key)
        except ssl.SSLError as error:
            raise FailedPrecondition(
                f"{self._files.certificate} and {self._files.key} can't be used: {error}",
                reason="CERTIFICATE_MALFORMED",
                field="gateway.tls",
            ) from error
        return context


def _room(wanted: int) -> int:
    """How many connections there may be: `wanted`, unless this process may open fewer files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = max(16, soft - _OTHER_FILES)
    _log.warning("fewer connections than wanted: raise `ulimit -n`", wanted=wanted, room=room)
    return room
