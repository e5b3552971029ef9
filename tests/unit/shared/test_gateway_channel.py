"""How a client outside reaches a gateway: the address, TLS, the key."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from certificates import Authority
from kube_gateway import KEY, ScriptedGateway
from plinth.cli.gateway_access import stack_address
from plinth.cluster.kubernetes_ops.gateway_client import GatewayClient
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    Unauthenticated,
    Unavailable,
)
from plinth.shared.rpc.gateway_channel import GatewayAddress
from plinth.shared.settings import load_settings
from plinth.v1 import gateway_pb2

STATUS = gateway_pb2.GetStatusResponse(queues=[gateway_pb2.QueueStatus(name="q", waiting=3)])


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("127.0.0.1:8081", "127.0.0.1:8081", False),
        ("grpc://a.example:1/", "a.example:1", False),
        ("grpcs://a.example:443", "a.example:443", True),
        ("[::1]:8081", "[::1]:8081", False),
    ],
)
def test_an_address(url: str, target: str, tls: bool) -> None:
    address = GatewayAddress.parse(url)
    assert (address.target, address.tls) == (target, tls)
    assert GatewayAddress.parse(str(address)) == address


@pytest.mark.parametrize("url", ["http://a:1", "https://a:1", "a", "a:b", "ftp://a:1", "", ":1"])
def test_what_is_no_address_says_what_would_be(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"host:port|like 127\.0\.0\.1:8081"):
        GatewayAddress.parse(url)


def secured(tmp_path: Path, *names: str) -> tuple[ScriptedGateway, dict[str, Path]]:
    files = Authority(tmp_path / "authority").issue(*names)
    pair = (files["key"].read_bytes(), files["certificate"].read_bytes())
    gateway = ScriptedGateway(grpc.ssl_server_credentials([pair]))
    gateway.status = STATUS
    return gateway, files


def status(address: GatewayAddress | str, key: str = KEY) -> gateway_pb2.GetStatusResponse:
    with GatewayClient(address, key) as client:
        return client.status()


def test_tls_with_the_machines_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, files = secured(tmp_path, "localhost")
    with gateway:
        monkeypatch.setenv("SSL_CERT_FILE", str(files["ca"]))
        assert status(f"grpcs://localhost:{gateway.port}") == STATUS
        with pytest.raises(Unauthenticated):
            status(f"grpcs://localhost:{gateway.port}", "wrong")
        with pytest.raises(Unavailable):  # no TLS to a gateway that speaks it
            status(f"localhost:{gateway.port}")
        stranger = Authority(tmp_path / "stranger")
        monkeypatch.setenv("SSL_CERT_FILE", str(stranger.ca))
        with pytest.raises(Unavailable):
            status(f"grpcs://localhost:{gateway.port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
        with pytest.raises(FailedPrecondition, match="SSL_CERT_FILE names, can't be read"):
            status(f"grpcs://localhost:{gateway.port}")


def test_a_certificate_that_is_at_hand_is_trusted_by_itself(tmp_path: Path) -> None:
    """The stack on this machine: its certificate names the host that others know it by."""
    gateway, files = secured(tmp_path, "plinth.example.com")
    with gateway:
        tls = {"certificate": files["certificate"], "key": files["key"]}
        settings = load_settings(
            data_dir=tmp_path / "data", gateway={"grpc_port": gateway.port, "tls": tls}
        )
        address = stack_address(settings)
        assert address.target == f"127.0.0.1:{gateway.port}"
        assert status(address) == STATUS
        with pytest.raises(PlinthError):  # which is not what it names
            status(GatewayAddress(address.target, True, address.roots))
