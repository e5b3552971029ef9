"""How a client outside the platform reaches a gateway's gRPC API: an address, TLS or not, a key.

The command line's clients and `plinth k8s` go this way, as any other client would.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.rpc.status import from_rpc_error

# A watch may say nothing for hours: pings tell a quiet connection from a dead one.
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
ROOTS = "SSL_CERT_FILE"  # OpenSSL's, which curl, Python's ssl and others follow as well


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
        host, colon, port = target.rpartition(":")
        if scheme not in ("grpc", "grpcs") or not (host and colon and port.isdigit()):
            raise InvalidArgument(
                f"{url!r} is no address of a gRPC API; like 127.0.0.1:8081, or "
                "grpcs://plinth.example.com:8081 for TLS",
                reason="GATEWAY_ADDRESS",
            )
        return cls(target, tls=scheme == "grpcs")

    def __str__(self) -> str:
        return f"grpcs://{self.target}" if self.tls else self.target


def open_blocking(address: GatewayAddress) -> grpc.Channel:
    """For blocking stubs. FailedPrecondition when the file that SSL_CERT_FILE names can't be
    read."""
    if not address.tls:
        return grpc.insecure_channel(address.target, options=_OPTIONS)
    return grpc.secure_channel(address.target, _credentials(address), options=_options(address))


def open_async(address: GatewayAddress) -> grpc.aio.Channel:
    """For asynchronous stubs. Raises as `open_blocking`."""
    if not address.tls:
        return grpc.aio.insecure_channel(address.target, options=_OPTIONS)
    return grpc.aio.secure_channel(address.target, _credentials(address), options=_options(address))


class GatewayConnection:
    """A blocking channel with a key. Every call raises the PlinthError that the platform raised."""

    def __init__(self, address: GatewayAddress | str, key: str) -> None:
        self.address = GatewayAddress.parse(address) if isinstance(address, str) else address
        self.channel = open_blocking(self.address)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def call(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        """The answer of a unary `method` of a stub on `channel`."""
        try:
            return method(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def stream(
        self, method: Callable[..., Any], request: Any, timeout_s: float | None = None
    ) -> Iterator[Any]:
        """The answers of a streaming `method`; closing the iterator cancels the call."""
        call = method(request, metadata=self._metadata, timeout=timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()


def _options(address: GatewayAddress) -> list[tuple[str, Any]]:
    if not address.server_name:
        return _OPTIONS
    return [*_OPTIONS, ("grpc.ssl_target_name_override", address.server_name)]


def _credentials(address: GatewayAddress) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(address.roots or machine_roots())


def machine_roots() -> bytes | None:
    """PEM of the authorities that this machine trusts; None: those that gRPC brings along."""
    named = os.environ.get(ROOTS)
    path = named or ssl.get_default_verify_paths().cafile
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"{path}, which {ROOTS} names, can't be read: {error.strerror}"
            if named
            else f"{path}, this machine's list of authorities, can't be read: {error.strerror}",
            reason="TLS_FILE",
        ) from error
