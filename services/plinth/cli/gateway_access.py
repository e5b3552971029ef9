"""Where the gateway is that a command talks to, and with which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from plinth.shared.errors import FailedPrecondition

if TYPE_CHECKING:
    from plinth.client import Client, GatewayAddress
    from plinth.shared.settings import Settings


UrlOption = Annotated[
    str | None,
    typer.Option(envvar="PLINTH_URL", help="host:port of a gateway's gRPC API; default: --data's"),
]
# Where a server listens on all addresses, it is found at this machine's own.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def api_key(settings: Settings) -> str:
    """The key to call with; empty where the gateway asks for none. InvalidArgument for what can be
    no key, FailedPrecondition when there is none."""
    from plinth.client.address import checked, key_of

    if key := key_of(None):
        return key
    path = settings.first_key_file
    if path.exists():
        try:
            return checked(path.read_text("utf-8", "replace").strip(), str(path))
        except OSError as error:
            raise FailedPrecondition(
                f"no API key: {path} can't be read ({error.strerror}); it is of the user who "
                "started the stack. Or set PLINTH_API_KEY",
                reason="MISSING_API_KEY",
            ) from error
    if settings.gateway.first_key is not None:  # in a gateway's pod
        return settings.gateway.first_key.get_secret_value()
    if settings.gateway.auth == "off":
        return ""
    raise FailedPrecondition(
        f"no API key: set PLINTH_API_KEY, or name the stack's data directory with --data "
        f"({path} does not exist; is the stack up? A platform that has keys already makes none: "
        "`plinth keys create --local --scope admin --save`)",
        reason="MISSING_API_KEY",
    )


def client(settings: Settings, url: str | None) -> Client:
    """Of the gateway at `url`, or of the stack in the data directory. Raises as the two below."""
    from plinth.client import Client

    return Client(gateway_address(settings, url), api_key(settings))


def gateway_address(settings: Settings, url: str | None) -> GatewayAddress:
    """The gRPC API that `url` names (InvalidArgument when it names none), or that of the stack in
    the data directory."""
    from plinth.client import GatewayAddress

    return stack_address(settings) if url is None else GatewayAddress.parse(url)


def stack_address(settings: Settings) -> GatewayAddress:
    """The gRPC API of the stack in the data directory. Its certificate is at hand and trusted by
    itself, since it names the host by which others know this machine."""
    from plinth.client import GatewayAddress
    from plinth.cluster.layout import Layout, StackState
    from plinth.shared.rpc import tls

    state = StackState.read(Layout.of(settings).state_file)
    host, port = settings.gateway.host, settings.gateway.grpc_port
    if state is not None and state.gateway_grpc_port:
        host, port = state.gateway_host, state.gateway_grpc_port
    host = _ANY.get(host, host)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    certificate = settings.gateway.tls.certificate
    if certificate is None:
        return GatewayAddress(target)
    return GatewayAddress(target, True, *tls.trust(certificate))
