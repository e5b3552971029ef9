"""How a client outside the platform reaches a gateway's gRPC API: an address, TLS or not."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from plinth.shared.errors import FailedPrecondition, InvalidArgument, PlinthError, Unavailable
from plinth.shared.rpc.status import from_rpc_error, said

# A watch may say nothing for hours: pings tell a quiet connection from a dead one.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # a minute by itself, and the longer one counts
    ("grpc.http2.max_pings_without_data", 0),  # by its word gRPC stops after two
    ("grpc.max_receive_message_length", 64 << 20),  # by itself 4 MiB: less than a long answer
    ("grpc.max_reconnect_backoff_ms", 2_000),  # two minutes by itself, after a gateway was away
]
_TARGET = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
ROOTS = "SSL_CERT_FILE"  # OpenSSL's, which curl, Python's ssl and others follow as well

# Reasons: the two can't agree on TLS, however often they try; the other side ended the connection,
# as one that speaks TLS does where this one doesn't, and a gateway that dies.
GATEWAY_TLS, GATEWAY_CLOSED = "GATEWAY_TLS", "GATEWAY_CLOSED"


@dataclass(frozen=True)
class GatewayAddress:
    """target: "host:port". tls: the gateway shows a certificate that `roots` (PEM; None: those of
    this machine) vouch for and that names `server_name` (empty: the host of the target)."""

    target: str
    tls: bool = False
    roots: bytes | None = None
    server_name: str = ""

    @classmethod
    def parse(cls, url: str) -> GatewayAddress:
        """Of "host:port", "grpc://host:port", or "grpcs://host:port" for TLS. InvalidArgument for
        the address of the REST API, and for what is none."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "grpc", url
        if scheme in ("http", "https"):
            raise InvalidArgument(
                f"{url} is an address of the REST API, and this goes by gRPC: give "
                f"{'grpcs://' if scheme == 'https' else ''}host:port of that (it listens on a port "
                "of its own, 8081 by default)",
                reason="GATEWAY_ADDRESS",
            )
        target = rest.rstrip("/")
        match = _TARGET.fullmatch(target)
        # gRPC itself would take port 65,537 for 1, and an IPv6 address without brackets for a name.
        if scheme not in ("grpc", "grpcs") or not (match and 1 <= int(match["port"]) <= 65_535):
            raise InvalidArgument(
                f"{url!r} is no address of a gRPC API; like 127.0.0.1:8081, [::1]:8081, or "
                "grpcs://plinth.example.com:8081 for TLS",
                reason="GATEWAY_ADDRESS",
            )
        return cls(target, tls=scheme == "grpcs")

    def __str__(self) -> str:
        return f"grpcs://{self.target}" if self.tls else self.target


def open_blocking(address: GatewayAddress) -> grpc.Channel:
    """A channel for calls that block. FailedPrecondition when the file that SSL_CERT_FILE names
    can't be read."""
    if not address.tls:
        return grpc.insecure_channel(address.target, options=OPTIONS)
    return grpc.secure_channel(address.target, _credentials(address), options=_options(address))


def async_opener(address: GatewayAddress) -> Callable[[], grpc.aio.Channel]:
    """What makes the same for asyncio, in the event loop that is to use it. FailedPrecondition at
    once."""
    if not address.tls:
        return lambda: grpc.aio.insecure_channel(address.target, options=OPTIONS)
    credentials, options = _credentials(address), _options(address)
    return lambda: grpc.aio.secure_channel(address.target, credentials, options=options)


# What gRPC's core says of a handshake that failed, and what it comes from.
_HANDSHAKES = (
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: leave grpcs:// out"),
    ("Hostname Verification", "its certificate names another host: use a name that is in it"),
    (
        "handshake",
        f"no authority that this machine trusts vouches for its certificate: {ROOTS} names a file "
        "of such (PEM)",
    ),
)


def _reason(address: GatewayAddress, hints: list[str]) -> str:
    if not hints:
        return "GATEWAY_UNREACHABLE"
    return GATEWAY_TLS if address.tls else GATEWAY_CLOSED


def told(raised: grpc.RpcError, address: GatewayAddress) -> PlinthError:
    """What the platform raised; or, where nobody answered at the address, Unavailable that says
    what to look at, and FailedPrecondition where somebody did who does not know the call."""
    error = from_rpc_error(raised)
    if raised.code() is grpc.StatusCode.UNIMPLEMENTED and not said(raised):
        return FailedPrecondition(
            f"what answers at {address} has no such call: a gateway of another release, or no "
            f"gateway ({error.message})",
            reason="NO_SUCH_CALL",
        )
    if said(raised) or not isinstance(error, Unavailable):
        return error
    hints = [hint for words, hint in _HANDSHAKES if words in error.message] if address.tls else []
    if not address.tls and "Socket closed" in error.message:
        hints = ["it ended the connection: if it speaks TLS, write grpcs:// before the address"]
    found = "".join(f"; {hint}" for hint in hints[:1])
    return Unavailable(
        f"the gateway at {address} can't be reached{found} ({error.message})",
        reason=_reason(address, hints),
    )


def _options(address: GatewayAddress) -> list[tuple[str, Any]]:
    if not address.server_name:
        return OPTIONS
    return [*OPTIONS, ("grpc.ssl_target_name_override", address.server_name)]


def _credentials(address: GatewayAddress) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(address.roots or machine_roots())


def machine_roots() -> bytes | None:
    """PEM of the authorities that this machine trusts; None: those that gRPC brings along."""
    named = os.environ.get(ROOTS)
    path = named or ssl.get_default_verify_paths().cafile
    if path is None:
        return None
    try:
        roots = Path(path).read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in roots and named:
            raise FailedPrecondition(
                f"{path}, which {ROOTS} names, holds no certificate in PEM", reason="TLS_FILE"
            )
        return roots
    except OSError as error:
        raise FailedPrecondition(
            f"{path}, which {ROOTS} names, can't be read: {error.strerror}"
            if named
            else f"{path}, this machine's list of authorities, can't be read: {error.strerror}",
            reason="TLS_FILE",
        ) from error
