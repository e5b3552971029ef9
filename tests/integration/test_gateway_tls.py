"""TLS at the gateway's own ports: who speaks it, who doesn't, and renewal without a restart."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from certificates import DAY, NOW, Authority
from gateway_stages import gateway_settings, running_stack
from patience import PATIENCE_S
from plinth.gateway.rest import http_server
from plinth.gateway.rest.http_server import Certificate
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.settings import load_settings
from plinth.shared.settings_sections import ServerTlsSettings
from plinth.v1 import models_pb2 as pb
from plinth.v1 import models_pb2_grpc

NAME = "plinth.example"


def files_of(authority: Authority, *names: str, **dates: object) -> dict[str, str]:
    issued = authority.issue(*names, **dates)  # type: ignore[arg-type]
    return {kind: str(issued[kind]) for kind in ("certificate", "key")}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def serial(context: ssl.SSLContext, url: str) -> int:
    """Of the certificate that a new connection is shown."""
    import socket

    from cryptography import x509

    parts = urlsplit(url)
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


async def test_both_ports_speak_tls_and_take_a_renewed_certificate_up(
    redis_server: str,
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "CERTIFICATE_POLL_S", 0.05)
    trust = ssl.create_default_context(cafile=authority.ca)
    real = httpx.AsyncClient
    # The stack waits for its /readyz under the address that it listens on.
    monkeypatch.setattr(httpx, "AsyncClient", lambda **given: real(**{"verify": trust, **given}))
    files = files_of(authority, NAME, "127.0.0.1")
    trust.check_hostname = False
    monkeypatch.setattr(
        "gateway_stages.Stack.url",
        property(lambda stack: f"https://127.0.0.1:{stack.settings.gateway.port}"),
    )
    async with running_stack(tmp_path / "data", redis_server, tls=files) as stack:
        first = await asyncio.to_thread(serial, trust, stack.url)
        async with httpx.AsyncClient() as client:
            answer = await client.get(
                f"{stack.url}/v1/models", headers={"authorization": f"Bearer {stack.key}"}
            )
            assert answer.json()["data"][0]["id"] == "chat"
            with pytest.raises(httpx.TransportError):
                await client.get(stack.url.replace("https", "http") + "/healthz")
        assert await grpc_models(stack.grpc_address, stack.key, authority) == ["models/chat"]

        files_of(authority, NAME, "127.0.0.1", ends=NOW - DAY / 2)  # expired: not taken
        async with asyncio.timeout(PATIENCE_S):
            before = time.monotonic()
            while time.monotonic() - before < 5 * http_server.CERTIFICATE_POLL_S:
                assert await asyncio.to_thread(serial, trust, stack.url) == first
        files_of(authority, NAME, "127.0.0.1")
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(serial, trust, stack.url) == first:
                pass
        assert await grpc_models(stack.grpc_address, stack.key, authority) == ["models/chat"]


def shaken_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A whole handshake. SSLError where it fails."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname=NAME),
    ]
    while ends:
        for end in list(ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                ends.remove(end)


def test_no_handshake_fails_while_certificates_are_renewed(authority: Authority) -> None:
    files = ServerTlsSettings(**files_of(authority, NAME))
    assert files.certificate is not None
    assert files.key is not None
    certificate = Certificate(files)
    pairs = []
    for _ in range(4):
        issued = files_of(authority, NAME)
        pairs.append([Path(issued[kind]).read_bytes() for kind in ("certificate", "key")])
    places = (files.certificate, files.key)
    done = threading.Event()

    def renew() -> None:
        for number in range(200):
            for path, content in zip(places, pairs[number % 4], strict=True):
                path.write_bytes(content)
                certificate.refresh()  # between the two as well
        done.set()

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        trust = ssl.create_default_context(cafile=authority.ca)
        while not done.is_set():
            shaken_hands(certificate.context, trust)
    finally:
        renewing.join()


async def grpc_models(address: str, key: str, authority: Authority) -> list[str]:
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    options = [("grpc.ssl_target_name_override", NAME)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        models = await models_pb2_grpc.ModelServiceStub(channel).ListModels(
            pb.ListModelsRequest(),
            metadata=(("authorization", f"Bearer {key}"),),
            timeout=PATIENCE_S,
        )
    return [model.name for model in models.models]


async def test_a_slow_handshake_is_cut_off(
    redis_server: str, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At both ports, and with gRPC's HTTP/2 as well."""
    for tls in ({}, files_of(authority, NAME)):
        settings = gateway_settings(tmp_path / "data", redis_server, tls=tls, head_timeout_s=0.3)
        stop, gateway = asyncio.Event(), settings.gateway
        from plinth.gateway.__main__ import serve

        serving = asyncio.create_task(serve(settings, stop))
        try:
            for port in (gateway.port, gateway.grpc_port):
                reader, writer = await connected(port, serving)
                # Whatever a server sends first, it ends the connection.
                await asyncio.wait_for(reader.read(), PATIENCE_S)
                writer.close()
        finally:
            stop.set()
            await serving


async def connected(
    port: int, serving: asyncio.Task[None]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert not serving.done()
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.01)


def test_files_that_are_wrong_are_refused(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue(NAME, to="a")
    other = authority.issue(NAME, to="b")
    for certificate, key in (
        (files["certificate"], other["key"]),
        (authority.issue(NAME, ends=NOW - DAY / 2, to="c")["certificate"], files["key"]),
        (tmp_path / "none", files["key"]),
    ):
        with pytest.raises(FailedPrecondition):
            http_server.Certificate(ServerTlsSettings(certificate=certificate, key=key))
    with pytest.raises(InvalidArgument, match=r"gateway\.tls.*key: missing"):
        load_settings(gateway={"tls": {"certificate": files["certificate"]}})
