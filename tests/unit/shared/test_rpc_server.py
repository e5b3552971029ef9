"""The server base on loopback, called by bare grpc channels that know nothing of Plinth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.shared.errors import InvalidArgument, ResourceExhausted, Unauthenticated
from plinth.shared.identity import current_principal, current_request_id, remaining_s
from plinth.shared.rpc.auth import PRINCIPAL_KEY, TOKEN_KEY, TokenAuthenticator
from plinth.shared.rpc.interceptors import interceptors
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.shared.telemetry import _add_request_id

TOKEN = "t" * 32
NAME = "plinth.internal.v1.TokenizerService"


def metadata(scopes: tuple[str, ...] = ("tokenize",), token: str = TOKEN, **extra: str):
    principal = json.dumps({"tenant": "acme", "key_id": "k1", "scopes": list(scopes)})
    return [
        ("x-plinth-token", token),
        ("x-plinth-principal", principal),
        *((key.replace("_", "-"), value) for key, value in extra.items()),
    ]


class Echo(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Each of the four kinds of call; texts steer what happens."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.release = asyncio.Event()

    async def Encode(self, request, context):
        if request.model == "invalid":
            raise InvalidArgument("no such thing", field="texts[0]", reason="BAD_TEXT")
        if request.model == "full":
            raise ResourceExhausted("queue is full", retry_after_s=1.5)
        if request.model == "bug":
            raise RuntimeError("the password is hunter2")
        if request.model == "cancelled":
            inner = asyncio.ensure_future(self.release.wait())
            inner.cancel()
            await inner
        if request.model == "hang":
            self.entered.set()
            try:
                await self.release.wait()
            finally:
                self.left.set()
        return pb.EncodeResponse(sequences=[pb.TokenIds(ids=[len(t)]) for t in request.texts])

    async def Decode(self, request, context):
        left = remaining_s()
        facts = [current_principal().tenant, current_request_id(), f"{left}"]
        return pb.DecodeResponse(texts=facts)

    async def DecodeStream(self, requests, context):
        async for request in requests:
            if request.model == "invalid":
                raise InvalidArgument("no such thing", field="model")
            yield pb.DecodeStreamResponse(text=",".join(map(str, request.ids)))

    async def Train(self, request, context):
        self.entered.set()
        try:
            for index in range(3):
                yield pb.TrainResponse(bytes_read=index)
            if request.name == "bug":
                raise RuntimeError("the password is hunter2")
            if request.name == "hang":
                await self.release.wait()
        finally:
            self.left.set()


def service(echo: Echo, **validators) -> GrpcService:
    return GrpcService(
        NAME,
        lambda s: tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(echo, s),
        scopes={"*": "tokenize", "Train": "jobs"},
        validators=validators,
    )


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load_settings(data_dir=tmp_path)


@asynccontextmanager
async def serving(settings: Settings, **validators) -> AsyncIterator[tuple]:
    echo = Echo()
    server = GrpcServer(
        [service(echo, **validators)], stage="tokenizer", settings=settings, token=TOKEN
    )
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, echo, channel, tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    finally:
        echo.release.set()
        await server.stop(0)


async def failing(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def drained(call) -> list:
    return [message async for message in call]


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    """The google.rpc details by their type's name, read without Plinth."""
    trailers = dict(tuple(pair) for pair in error.trailing_metadata())
    found = {}
    for packed in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        found[kind.__name__] = kind.FromString(packed.value)
    return found


def all_calls(stub, **kwargs):
    """One call of each of the four kinds that the stub has."""
    return [
        stub.Encode(pb.EncodeRequest(texts=["abc"]), **kwargs),
        drained(stub.Train(pb.TrainRequest(), **kwargs)),
        drained(stub.DecodeStream(iter([pb.DecodeStreamRequest(ids=[1])]), **kwargs)),
    ]


async def test_without_the_token_nothing_but_health_answers(settings) -> None:
    async with serving(settings) as (_server, echo, channel, stub):
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        principal_only = metadata()[1:]
        for given in ([], metadata(token="x" * 32), principal_only, [*metadata(), metadata()[0]]):
            for call in all_calls(stub, metadata=given):
                error = await failing(call)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, given
        # Nothing is sent: what a client sends into a call that is refused may fail at its own side.
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        assert await reflect().code() is grpc.StatusCode.UNAUTHENTICATED
        unknown = channel.unary_unary("/plinth.v1.Nothing/Here")
        assert (await failing(unknown(b""))).code() is grpc.StatusCode.UNAUTHENTICATED
        assert not echo.entered.is_set()


async def test_with_the_token_reflection_lists_the_services(settings) -> None:
    async with serving(settings) as (_server, _echo, channel, _stub):
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        (answer,) = await drained(reflect(iter([ask]), metadata=[("x-plinth-token", TOKEN)]))
        names = {service.name for service in answer.list_services_response.service}
        assert NAME in names


async def test_all_kinds_of_call_answer(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        unary, server_stream, both = [
            await call for call in all_calls(stub, metadata=metadata(("tokenize", "jobs")))
        ]
        assert unary.sequences[0].ids == [3]
        assert [m.bytes_read for m in server_stream] == [0, 1, 2]
        assert [m.text for m in both] == ["1"]


@pytest.mark.parametrize("scopes", [(), ("inference",), ("jobs",)])
async def test_a_method_needs_its_scope(settings, scopes) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        error = await failing(stub.Encode(pb.EncodeRequest(), metadata=metadata(scopes)))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "tokenize" in error.details()
        assert details(error)["ErrorInfo"].reason == "SCOPE_MISSING"


async def test_admin_holds_every_scope(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        await stub.Encode(pb.EncodeRequest(), metadata=metadata(("admin",)))


@pytest.mark.parametrize(
    "principal",
    [
        "not json",
        "[]",
        '{"tenant":"a"}',
        '{"tenant":1,"key_id":"k","scopes":[]}',
        '{"tenant":"a","key_id":"k","scopes":"admin"}',
        '{"tenant":"a","key_id":"k","scopes":[1]}',
        '{"tenant":"a\\u0000","key_id":"k","scopes":["admin"]}',
        '{"tenant":"a","key_id":"k","scopes":["admin"],"more":1}',
        '{"tenant":"\\ud800","key_id":"k","scopes":["admin"]}',
        "[" * 4000,
        '"' + "x" * 5000 + '"',
    ],
)
async def test_a_malformed_principal_is_unauthenticated(settings, principal) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        given = [("x-plinth-token", TOKEN), ("x-plinth-principal", principal)]
        error = await failing(stub.Encode(pb.EncodeRequest(), metadata=given))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "x-plinth-principal" in error.details()


async def test_token_without_principal_is_refused(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        call = stub.Encode(pb.EncodeRequest(), metadata=[("x-plinth-token", TOKEN)])
        error = await failing(call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_typed_errors_carry_details(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        call = stub.Encode(
            pb.EncodeRequest(model="invalid"), metadata=metadata(x_request_id="req-7")
        )
        error = await failing(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = details(error)
        assert found["ErrorInfo"].reason == "BAD_TEXT"
        assert found["ErrorInfo"].domain == "plinth"
        assert found["BadRequest"].field_violations[0].field == "texts[0]"
        assert found["RequestInfo"].request_id == "req-7"
        assert ("x-request-id", "req-7") in [tuple(pair) for pair in error.trailing_metadata()]
        error = await failing(stub.Encode(pb.EncodeRequest(model="full"), metadata=metadata()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(error)
        assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500
        assert found["QuotaFailure"].violations[0].description == "queue is full"


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_unexpected_error_leaks_nothing_and_is_logged(settings, kind) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        given = metadata(("tokenize", "jobs"), x_request_id="req-9")
        with capture_logs(processors=[_add_request_id]) as logs:
            if kind == "unary":
                call = stub.Encode(pb.EncodeRequest(model="bug"), metadata=given)
            else:
                call = drained(stub.Train(pb.TrainRequest(name="bug"), metadata=given))
            error = await failing(call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in repr(error)
        assert "req-9" in error.details()
        (event,) = [log for log in logs if log["event"] == "unexpected error"]
        assert event["exc_info"]
        assert event["request_id"] == "req-9"


async def test_errors_in_the_middle_of_a_stream(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        requests = [pb.DecodeStreamRequest(ids=[1]), pb.DecodeStreamRequest(model="invalid")]
        call = stub.DecodeStream(iter(requests), metadata=metadata())
        assert (await call.read()).text == "1"
        error = await failing(call.read())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(error)["BadRequest"].field_violations[0].field == "model"


async def test_bytes_that_are_no_message_are_an_invalid_argument(settings) -> None:
    async with serving(settings) as (_server, _echo, channel, _stub):
        for path in ("Encode", "DecodeStream"):
            if path == "Encode":
                call = channel.unary_unary(f"/{NAME}/{path}")(b"\xff\xff", metadata=metadata())
            else:
                raw = channel.stream_stream(f"/{NAME}/{path}")
                call = drained(raw(iter([b"\xff\xff"]), metadata=metadata()))
            error = await failing(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert path in error.details()


async def test_validators_see_every_message(settings) -> None:
    def not_too_many(request) -> None:
        if len(request.ids) > 2:
            raise InvalidArgument("at most 2 ids", field="ids")

    async with serving(settings, DecodeStream=not_too_many) as (_server, _echo, _channel, stub):
        requests = [pb.DecodeStreamRequest(ids=[1]), pb.DecodeStreamRequest(ids=[1, 2, 3])]
        call = stub.DecodeStream(iter(requests), metadata=metadata())
        assert (await call.read()).text == "1"
        assert (await failing(call.read())).details() == "at most 2 ids"


async def test_a_message_over_the_limit_is_refused(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path, rpc__max_message_bytes=100_000)
    async with serving(settings) as (_server, _echo, _channel, stub):
        call = stub.Encode(pb.EncodeRequest(texts=["x" * 100_001]), metadata=metadata())
        assert (await failing(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_call_without_deadline_gets_the_default(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path, rpc__default_deadline_s=0.2)
    async with serving(settings) as (_server, echo, _channel, stub):
        error = await failing(stub.Encode(pb.EncodeRequest(model="hang"), metadata=metadata()))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert echo.left.is_set()


async def test_streams_without_deadline_go_on(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path, rpc__default_deadline_s=0.05)
    async with serving(settings) as (_server, echo, _channel, stub):
        request = pb.TrainRequest(name="hang")
        call = stub.Train(request, metadata=metadata(("jobs",)))
        for _ in range(3):
            await call.read()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(echo.left.wait())), 0.2)
        echo.release.set()
        assert await call.read() is grpc.aio.EOF


async def test_the_clients_deadline_reaches_the_handler(settings) -> None:
    async with serving(settings) as (_server, echo, _channel, stub):
        answer = await stub.Decode(pb.DecodeRequest(), timeout=50, metadata=metadata())
        assert answer.texts[0] == "acme"
        assert 0 < float(answer.texts[2]) <= 50.1  # gRPC rounds up
        request = pb.EncodeRequest(model="hang")
        error = await failing(stub.Encode(request, timeout=0.2, metadata=metadata()))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(echo.left.wait(), PATIENCE_S)


async def test_hanging_up_reaches_a_stream_at_once(settings) -> None:
    async with serving(settings) as (_server, echo, _channel, stub):
        request = pb.TrainRequest(name="hang")
        call = stub.Train(request, metadata=metadata(("jobs",)))
        await call.read()
        call.cancel()
        await asyncio.wait_for(echo.left.wait(), PATIENCE_S)


async def test_what_a_handler_awaits_may_be_cancelled(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        call = stub.Encode(pb.EncodeRequest(model="cancelled"), metadata=metadata())
        error = await asyncio.wait_for(failing(call), PATIENCE_S)
        assert error.code() is grpc.StatusCode.INTERNAL  # CANCELLED would be the caller's word


@pytest.mark.parametrize(
    "pairs",
    [
        [(TOKEN_KEY, b"\xff\xfe")],
        [(TOKEN_KEY, "\ud800" * 20)],
        [(TOKEN_KEY, TOKEN), (TOKEN_KEY, TOKEN)],
        [(TOKEN_KEY, TOKEN + "x" * 5000)],
        [(TOKEN_KEY, TOKEN), (PRINCIPAL_KEY, b"\xff")],
        [(TOKEN_KEY, TOKEN[:-1])],
        [(TOKEN_KEY, "é" * 32)],
        [(TOKEN_KEY, "")],
    ],
)
async def test_credentials_that_no_grpc_client_would_send(pairs) -> None:
    with pytest.raises(Unauthenticated, match="x-plinth-"):
        await TokenAuthenticator(TOKEN)(pairs)


async def test_stream_in_unary_out_passes_the_same_layers() -> None:
    """No proto has such a method yet, so the layers are put around a bare one."""
    seen: list[bytes] = []

    async def upload(requests, context):
        async for request in requests:
            if request == b"bad":
                raise InvalidArgument("a bad part", field="part")
            seen.append(request)
        return current_principal().tenant.encode()

    def refuse_long(request: bytes) -> None:
        if len(request) > 5:
            raise InvalidArgument("a long part", field="part")

    layers = interceptors(
        methods=frozenset(),
        scopes={"/t.Up/Load": "jobs"},
        validators={"/t.Up/Load": refuse_long},
        authenticate=TokenAuthenticator(TOKEN),
        default_deadline_s=5,
        slow_reader_s=60,
    )
    server = grpc.aio.server(interceptors=layers)
    handler = grpc.stream_unary_rpc_method_handler(upload)
    other = {"Load": handler, "Other": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Up", other),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            load = channel.stream_unary("/t.Up/Load")
            allowed = metadata(("jobs",))
            assert await load(iter([b"a", b"b"]), metadata=allowed) == b"acme"
            assert seen == [b"a", b"b"]
            for parts, message in (([b"a", b"bad"], "a bad part"), ([b"a" * 9], "a long part")):
                error = await failing(load(iter(parts), metadata=allowed))
                assert (error.code(), error.details()) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    message,
                )
            error = await failing(load(iter([b"a"]), metadata=metadata(("runs",))))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            # A method that nobody gave a scope is closed, not open.
            unscoped = channel.stream_unary("/t.Up/Other")
            error = await failing(unscoped(iter([b"a"]), metadata=metadata(("admin",))))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await server.stop(0)


async def test_request_ids_come_back_and_bad_ones_are_refused(settings) -> None:
    async with serving(settings) as (_server, _echo, _channel, stub):
        given = metadata(x_request_id="abc-1")
        call = stub.Decode(pb.DecodeRequest(), metadata=given)
        assert (await call).texts[1] == "abc-1"
        assert ("x-request-id", "abc-1") in [tuple(p) for p in await call.trailing_metadata()]
        made = (await stub.Decode(pb.DecodeRequest(), metadata=metadata())).texts[1]
        assert len(made) == 32
        given = metadata(x_request_id="a b;c")
        error = await failing(stub.Decode(pb.DecodeRequest(), metadata=given))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_says_ready_and_not_serving_before_draining(settings) -> None:
    serving_, not_serving = (
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    )
    async with serving(settings) as (server, echo, channel, stub):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=NAME)
        )
        assert (await watch.read()).status == not_serving
        await server.set_ready(True)
        assert (await watch.read()).status == serving_
        running = stub.Encode(pb.EncodeRequest(model="hang", texts=["ab"]), metadata=metadata())
        waiting = asyncio.ensure_future(running)
        await asyncio.wait_for(echo.entered.wait(), PATIENCE_S)
        stopping = asyncio.create_task(server.stop(10 * PATIENCE_S))
        assert (await watch.read()).status == not_serving
        assert not stopping.done()
        echo.release.set()
        assert (await waiting).sequences[0].ids == [2]  # accepted before: answered
        await asyncio.wait_for(stopping, PATIENCE_S)  # the watch does not use up the grace


async def test_a_port_in_use_is_a_clear_error(settings) -> None:
    async with serving(settings) as (server, _echo, _channel, _stub):
        second = GrpcServer(
            [service(Echo())], stage="tokenizer", settings=settings, token=TOKEN, port=server.port
        )
        with pytest.raises(Exception, match="port in use"):
            await second.start()
        await second.stop(0)


async def test_a_method_without_scope_is_refused_at_start(settings) -> None:
    bare = GrpcService(NAME, lambda _server: None, scopes={"Encode": "tokenize"})
    with pytest.raises(Exception, match="has no scope"):
        GrpcServer([bare], stage="tokenizer", settings=settings, token=TOKEN)


async def test_calls_are_counted_by_method_and_code(settings) -> None:
    def count(code: str) -> float:
        labels = {"method": f"{NAME}/Encode", "code": code}
        return REGISTRY.get_sample_value("plinth_rpc_requests_total", labels) or 0.0

    async with serving(settings) as (_server, _echo, _channel, stub):
        before = {code: count(code) for code in ("OK", "INVALID_ARGUMENT", "UNAUTHENTICATED")}
        await stub.Encode(pb.EncodeRequest(), metadata=metadata())
        await failing(stub.Encode(pb.EncodeRequest(model="invalid"), metadata=metadata()))
        await failing(stub.Encode(pb.EncodeRequest()))
        for code, value in before.items():
            assert count(code) == value + 1, code
        in_flight = REGISTRY.get_sample_value("plinth_rpc_in_flight", {"method": f"{NAME}/Encode"})
        assert in_flight == 0
