"""How a client outside reaches a gateway: the address, TLS, the key."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from certificates import Authority
from kube_gateway import KEY, ScriptedGateway
from plinth.cli.gateway_access import api_key, stack_address
from plinth.client import Client, GatewayAddress
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    Unauthenticated,
    Unavailable,
)
from plinth.shared.settings import load_settings
from plinth.v1 import operations_pb2

STATUS = operations_pb2.GetStatusResponse(queues=[operations_pb2.Queue(name="queues/q", waiting=3)])


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


@pytest.mark.parametrize(
    "url",
    [
        *("http://a:1", "https://a:1", "a", "a:b", "ftp://a:1", "", ":1", "grpcs://"),
        *("a:0", "a:65536", "a:99999", "a:-1", "a:\u0663", "::1:8081", "[::1]", "unix:/tmp/s:1"),
        *("a b:1", "a\n:1", "user@a:1", "a:1/b", "a:1?b", "dns:///a:1"),
    ],
)
def test_what_is_no_address_says_what_would_be(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"host:port|like 127\.0\.0\.1:8081"):
        GatewayAddress.parse(url)


def secured(tmp_path: Path, *names: str) -> tuple[ScriptedGateway, dict[str, Path]]:
    files = Authority(tmp_path / "authority").issue(*names)
    pair = (files["key"].read_bytes(), files["certificate"].read_bytes())
    gateway = ScriptedGateway(grpc.ssl_server_credentials([pair]))
    gateway.status = STATUS
    return gateway, files


def status(address: GatewayAddress | str, key: str = KEY) -> operations_pb2.GetStatusResponse:
    with Client(address, key) as client:
        return client.operations.get_status()


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


def test_who_does_not_answer_is_named_with_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, files = secured(tmp_path, "localhost")
    stranger = Authority(tmp_path / "stranger")
    plain = ScriptedGateway()
    with gateway, plain:
        for address, trusted, words in (
            (f"grpcs://localhost:{gateway.port}", stranger.ca, "no authority that this machine"),
            (f"grpcs://127.0.0.1:{gateway.port}", files["ca"], "names another host"),
            (f"grpcs://localhost:{plain.port}", files["ca"], "leave grpcs:// out"),
            (f"localhost:{gateway.port}", files["ca"], "write grpcs://"),
        ):
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            with pytest.raises(Unavailable, match=words) as caught:
                status(address)
            assert address in caught.value.message
        (tmp_path / "junk").write_text("junk")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "junk"))
        with pytest.raises(FailedPrecondition, match=r"junk.*no certificate in PEM"):
            status(f"grpcs://localhost:{gateway.port}")


@pytest.mark.parametrize("key", ["a\nb", "k\xe4", "\udcff", "a\x1b[2J"])
def test_what_can_be_no_key_is_said_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    settings = load_settings(data_dir=tmp_path)
    monkeypatch.setenv("PLINTH_API_KEY", key)
    with pytest.raises(InvalidArgument, match="PLINTH_API_KEY holds no API key") as caught:
        api_key(settings)
    assert key not in caught.value.message
    monkeypatch.delenv("PLINTH_API_KEY")
    settings.ensure_secrets_dir()
    for content in (key.encode("utf-8", "surrogateescape"), b"", b"\xff\xfe"):
        settings.first_key_file.write_bytes(content)
        with pytest.raises(InvalidArgument, match="secrets/api-key holds no API key"):
            api_key(settings)
    settings.first_key_file.unlink()
    settings.first_key_file.mkdir()
    with pytest.raises(FailedPrecondition, match="Is a directory"):
        api_key(settings)
