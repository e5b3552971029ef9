"""Mutual TLS between stages, with certificates of an authority made here."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certificates import DAY, NOW, Authority
from patience import PATIENCE_S
from plinth.cluster.ports import free_port
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.shared.errors import FailedPrecondition, InvalidArgument, PlinthError
from plinth.shared.rpc import tls
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings

TOKEN = "t" * 32


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def settings_of(tmp_path: Path, files: dict[str, Path] | None) -> Settings:
    return load_settings(data_dir=tmp_path, tls=files or {})


class Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    async def Encode(self, request, context):
        return pb.EncodeResponse()


def server_of(settings: Settings, health_port: int = 0) -> GrpcServer:
    add = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    service = GrpcService(
        "plinth.internal.v1.TokenizerService", lambda s: add(Tokenizer(), s), {"*": "tokenize"}
    )
    return GrpcServer(
        [service],
        stage="tokenizer",
        settings=settings,
        token=TOKEN,
        tls=settings.tls,
        health_port=health_port,
    )


async def ask(port: int, settings: Settings, stage: str = "tokenizer") -> grpc.StatusCode:
    """How one call ends. Retries of what can't be connected to are cut short."""
    async with open_channel(f"127.0.0.1:{port}", stage=stage, settings=settings, token=TOKEN) as c:
        try:
            await tokenizer_pb2_grpc.TokenizerServiceStub(c).Encode(
                pb.EncodeRequest(), timeout=PATIENCE_S
            )
        except PlinthError as error:
            return grpc.StatusCode[error.code]
    return grpc.StatusCode.OK


async def test_both_sides_must_come_from_one_authority(authority, tmp_path) -> None:
    mine = settings_of(tmp_path, authority.issue("plinth-tokenizer", to="server"))
    gateway = settings_of(tmp_path, authority.issue("plinth-gateway", to="gateway"))
    stranger = settings_of(
        tmp_path, {**Authority(tmp_path / "other").issue("plinth-gateway"), "ca": authority.ca}
    )
    server = server_of(mine)
    port = await server.start()
    try:
        assert await ask(port, gateway) is grpc.StatusCode.OK
        assert await ask(port, stranger) is grpc.StatusCode.UNAVAILABLE, "a foreign certificate"
        assert await ask(port, gateway, "reward") is grpc.StatusCode.UNAVAILABLE, (
            "it is a tokenizer and answers as nothing else"
        )
        assert await ask(port, settings_of(tmp_path, None)) is grpc.StatusCode.UNAVAILABLE, (
            "no plain text"
        )
    finally:
        await server.stop(0)


async def test_health_alone_is_told_without_a_certificate(authority, tmp_path) -> None:
    settings = settings_of(tmp_path, authority.issue("plinth-tokenizer"))
    health_port = free_port()
    server = server_of(settings, health_port)
    await server.start()
    await server.set_ready(True)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as plain:
            check = health_pb2_grpc.HealthStub(plain).Check
            for name in ("", "plinth.internal.v1.TokenizerService"):
                answer = await check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await server.set_ready(False)
            answer = await check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await tokenizer_pb2_grpc.TokenizerServiceStub(plain).Encode(pb.EncodeRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest())
        assert gone.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_taken_health_port_ends_the_start_with_its_number(tmp_path) -> None:
    first, second = (server_of(settings_of(tmp_path, None), port) for port in [free_port()] * 2)
    await first.start()
    try:
        with pytest.raises(FailedPrecondition, match=str(first._health_port)):
            await second.start()
    finally:
        await first.stop(0)


async def test_a_renewed_certificate_is_taken_up_and_a_wrong_one_is_not(
    authority, tmp_path
) -> None:
    settings = settings_of(tmp_path, authority.issue("plinth-tokenizer", to="server"))
    client = settings_of(tmp_path, authority.issue("plinth-gateway", to="gateway"))
    server = server_of(settings)
    port = await server.start()
    try:
        first = await _shown(port, client)
        authority.issue("plinth-tokenizer", to="server")
        renewed = await _shown(port, client)
        assert renewed != first
        authority.issue("plinth-reward", to="server")
        assert await _shown(port, client) == renewed, "the last good one stays"
    finally:
        await server.stop(0)


async def _shown(port: int, client: Settings) -> str:
    """The certificate that the server shows to a new connection."""
    import ssl

    context = ssl.create_default_context(cafile=str(client.tls.ca))
    context.load_cert_chain(str(client.tls.certificate), str(client.tls.key))
    context.set_alpn_protocols(["h2"])
    import asyncio

    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="plinth-tokenizer"
    )
    try:
        return ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(True))
    finally:
        writer.transport.abort()


def test_what_is_wrong_with_a_certificate_is_told_before_anything_listens(
    authority, tmp_path
) -> None:
    def refused(files: dict[str, Path], stage: str = "tokenizer") -> str:
        with pytest.raises(FailedPrecondition) as caught:
            tls.server_credentials(settings_of(tmp_path, files).tls, stage)
        return caught.value.message

    gone = authority.issue("plinth-tokenizer", begins=NOW - 3 * DAY, ends=NOW - DAY, to="old")
    assert f"expired on {NOW - DAY:%Y-%m-%d}" in refused(gone)
    early = authority.issue("plinth-tokenizer", begins=NOW + DAY, ends=NOW + 2 * DAY, to="new")
    assert "clock" in refused(early)
    good = authority.issue("plinth-tokenizer", to="good")
    assert "names plinth-tokenizer, not plinth-reward" in refused(good, "reward")
    assert "names nobody" in refused(authority.issue(to="bare"))
    other = authority.issue("plinth-tokenizer", to="other")
    assert "is not the key of" in refused({**good, "key": other["key"]})
    assert "no private key" in refused({**good, "key": good["certificate"]})
    assert "no certificate" in refused({**good, "certificate": good["key"]})
    assert "can't be read" in refused({**good, "key": tmp_path / "none"})


def test_half_of_tls_is_an_error_that_names_the_other_half(authority, tmp_path) -> None:
    files = authority.issue("plinth-tokenizer")
    del files["ca"]
    with pytest.raises(InvalidArgument, match=r"tls\.ca: missing"):
        settings_of(tmp_path, files)


def test_an_exchanged_link_counts_as_a_change(authority, tmp_path) -> None:
    """A mounted Secret changes by the link to its folder, not by its files."""
    settings = settings_of(tmp_path, authority.issue("plinth-tokenizer", to="a"))
    before = tls.stamp(settings.tls)
    other = authority.issue("plinth-tokenizer", to="b")
    other["certificate"].replace(settings.tls.certificate)
    assert tls.stamp(settings.tls) != before
