"""Whatever ends a call of a stage, its caller gets a PlinthError of the right type: over all codes,
all kinds of call, and all ways in which a connection fails. And nobody else knows gRPC's own."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import plinth
from patience import PATIENCE_S
from plinth.shared.errors import (
    ERROR_TYPES,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PlinthError,
    Unavailable,
)
from plinth.shared.rpc.calls import Requests, StageCall
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.status import from_rpc_error, raised_by_call, said, to_status
from plinth.shared.settings import Settings, load_settings

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
# What ends by itself sooner or later: worth another attempt.
MAY_PASS = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}
End = Callable[[Any], Any]


class Steered(grpc.GenericRpcHandler):
    """A server of any method: /stage/<kind> ends as it is told to, after `first` messages."""

    def __init__(self) -> None:
        self.end: Any = None
        self.first = 0
        self.entered = asyncio.Event()

    def service(self, details: Any) -> Any:
        kind = details.method.rpartition("/")[2]

        async def one(_: Any, context: Any) -> bytes:
            self.entered.set()
            await self.end(context)
            return b"answer"

        async def many(_: Any, context: Any) -> AsyncIterator[bytes]:
            for _number in range(self.first):
                yield b"message"
            self.entered.set()
            await self.end(context)

        return getattr(grpc, f"{kind}_rpc_method_handler")(many if kind.endswith("stream") else one)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, rpc={"max_message_bytes": 1 << 20})


@asynccontextmanager
async def steered(settings: Settings) -> AsyncIterator[tuple[Steered, grpc.aio.Channel, Any]]:
    handler = Steered()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 20)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(
            f"127.0.0.1:{port}", stage="tokenizer", settings=settings, token="t"
        ) as channel:
            yield handler, channel, server
    finally:
        await server.stop(0)


async def ask(channel: grpc.aio.Channel, kind: str, data: bytes = b"", **options: Any) -> None:
    """One call to its end, in the way in which callers go through each kind."""
    method = getattr(channel, kind)(f"/plinth.v1.Any/{kind}")

    async def requests() -> AsyncIterator[bytes]:
        yield data

    call = method(requests() if kind.startswith("stream") else data, **options)
    if kind.endswith("unary"):
        await call
    else:
        async for _ in call:
            pass


async def refused(channel: grpc.aio.Channel, kind: str, *rest: Any, **options: Any) -> PlinthError:
    with pytest.raises(Exception) as caught:
        async with asyncio.timeout(PATIENCE_S):
            await ask(channel, kind, *rest, **options)
    assert isinstance(caught.value, PlinthError), repr(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
async def test_every_status_is_a_typed_error(settings, kind) -> None:
    async with steered(settings) as (server, channel, _):
        for code in CODES:

            async def end(context: Any, code: grpc.StatusCode = code) -> None:
                await context.abort(code, "why so")

            server.end, server.first = end, 1
            error = await refused(channel, kind)
            assert "why so" in error.message
            assert not said(error)
            assert error.transient is (code.name in MAY_PASS), code
            if code.name in ERROR_TYPES and code is not grpc.StatusCode.CANCELLED:
                assert error.code == code.name
                assert "tokenizer" in error.message  # who was asked


@pytest.mark.parametrize("kind", KINDS)
async def test_every_error_of_ours_comes_back_as_it_was(settings, kind) -> None:
    async with steered(settings) as (server, channel, _):
        for made in ERROR_TYPES.values():
            told = made("what", reason="WHY", field="a.b", retry_after_s=2.5, metadata={"a": "b"})

            async def end(context: Any, told: PlinthError = told) -> None:
                status = to_status(told)
                await context.abort(status.code, status.details, tuple(status.trailing_metadata))

            server.end, server.first = end, 1
            error = await refused(channel, kind)
            assert type(error) is type(told)
            assert {**vars(error)} == {**vars(told)}
            assert said(error)
            assert raised_by_call(error) is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_fails_may_be_there_again(settings, kind) -> None:
    async def never(_context: Any) -> None:
        await asyncio.Event().wait()

    async with steered(settings) as (server, channel, running):
        server.end = never
        call = asyncio.create_task(refused(channel, kind))
        await asyncio.wait_for(server.entered.wait(), PATIENCE_S)
        await running.stop(0)
        assert isinstance(await call, Unavailable)
        assert isinstance(await refused(channel, kind), Unavailable)  # nobody listens there now


@pytest.mark.parametrize("kind", KINDS)
async def test_time_that_runs_out_is_told_as_that(settings, kind) -> None:
    async def never(_context: Any) -> None:
        await asyncio.Event().wait()

    async with steered(settings) as (server, channel, _):
        server.end = never
        error = await refused(channel, kind, timeout=0.05)
        assert isinstance(error, DeadlineExceeded)
        assert error.transient
        assert f"tokenizer ({kind})" in error.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1 << 20) + 1, 9 << 20])
async def test_a_message_that_is_too_long_is_refused_for_good(settings, kind, size) -> None:
    async def well(_context: Any) -> None:
        return None

    async with steered(settings) as (server, channel, _):
        server.end = well
        error = await refused(channel, kind, b"x" * size)
        assert isinstance(error, InvalidArgument)
        assert not error.transient
        assert error.reason == "MESSAGE_TOO_LARGE"
        assert f"{size:,} bytes is too long for one call, which takes {1 << 20:,}" in error.message


async def test_a_message_that_the_other_side_finds_too_long(settings, tmp_path) -> None:
    wide = load_settings(data_dir=tmp_path, rpc={"max_message_bytes": 4 << 20})
    async with steered(wide) as (server, channel, _):

        async def well(_context: Any) -> None:
            return None

        server.end = well
        error = await refused(channel, "unary_unary", b"x" * (2 << 20))
        assert isinstance(error, InvalidArgument)
        assert f"takes {1 << 20:,} at most" in error.message


async def test_a_stream_that_has_ended_is_written_to(settings) -> None:
    async with steered(settings) as (server, channel, _):

        async def end(context: Any) -> None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

        server.end = end
        call = channel.stream_stream("/plinth.v1.Any/stream_stream")()
        # In the moment in which it ends gRPC does not say why; then it is worth another attempt.
        with pytest.raises((NotFound, Unavailable)) as caught:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await call.write(b"more")
        for again in (call.write(b"more"), call.read(), call.write(b"more")):
            with pytest.raises(type(caught.value)):
                await again


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_what_the_requests_raise_comes_out(settings, kind) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError("no second one")

    async with steered(settings) as (server, channel, _):

        async def reads_all() -> None:
            call = getattr(channel, kind)(f"/plinth.v1.Any/{kind}")(requests())
            if kind == "stream_unary":
                await call
            else:
                async for _ in call:
                    pass

        server.end = lambda _context: asyncio.Event().wait()
        with pytest.raises(KeyError, match="no second one"):
            await asyncio.wait_for(reads_all(), PATIENCE_S)


async def test_what_the_caller_cancels_is_cancelled(settings) -> None:
    async def never(_context: Any) -> None:
        await asyncio.Event().wait()

    async with steered(settings) as (server, channel, _):
        server.end = never
        call = asyncio.create_task(ask(channel, "unary_stream"))
        await asyncio.wait_for(server.entered.wait(), PATIENCE_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_nobody_but_the_rpc_layer_knows_grpcs_errors_and_channels() -> None:
    """By the source of every module: a new caller can't forget to translate."""
    package = Path(plinth.__file__).parent
    layers = {package / "shared" / "rpc", package / "client"}  # a client is a layer of its own
    forbidden = {"AioRpcError", "insecure_channel", "secure_channel"}
    found = []
    for path in package.rglob("*.py"):
        if layers & set(path.parents) or path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            continue
        tree = ast.parse(path.read_text())
        names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        found += [f"{path.relative_to(package)}: {name}" for name in names if name in forbidden]
        caught = [n.type for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type]
        found += [
            f"{path.relative_to(package)}: except {ast.unparse(one)}"
            for one in caught
            if "RpcError" in ast.unparse(one)
        ]
    assert found == []


def test_who_waits_for_grpcs_errors_opens_the_channel_that_raises_them() -> None:
    """In the tests and the programs beside the platform: around a stage's channel, whose calls
    raise PlinthErrors, a handler of gRPC's own catches nothing."""
    root = Path(__file__).parents[3]
    opens = {"insecure_channel", "secure_channel"}
    found, handled = [], 0
    for path in [*(root / "tests").rglob("*.py"), *(root / "ops").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        waits = [
            *(n.type for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type),
            *(
                argument
                for n in ast.walk(tree)
                if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(("raises", "suppress"))
                for argument in n.args
            ),
        ]
        waits = [one for one in waits if "RpcError" in ast.unparse(one)]
        handled += len(waits)
        if waits and not opens & {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}:
            found += [f"{path.relative_to(root)}:{one.lineno}" for one in waits]
    assert handled > 20  # of raw channels
    assert found == []


class Over:
    """A call that ended in the moment in which it is written to."""

    async def write(self, _: bytes) -> None:
        raise asyncio.InvalidStateError

    def done(self) -> bool:
        return True

    def cancelled(self) -> bool:
        return False

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    async def details(self) -> str:
        return "RST_STREAM"

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()


async def test_what_a_write_raises_is_known_for_a_calls_error() -> None:
    """Else a stream that broke there is taken for one that nobody could be asked for."""
    call = StageCall(Over(), Requests(None, 100, "tokenizer (Train)"), None)
    with pytest.raises(Unavailable) as caught:
        await call.write(b"more")
    assert raised_by_call(caught.value) is not None
    assert not said(caught.value)


async def test_what_the_requests_raise_keeps_its_cause(settings) -> None:
    """They may come from another call, whose error it is."""
    inner = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "no such thing"
    )

    async def requests() -> AsyncIterator[bytes]:
        yield b"one"
        raise from_rpc_error(inner)

    async with steered(settings) as (server, channel, _):
        server.end = lambda _context: asyncio.Event().wait()
        with pytest.raises(NotFound) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await channel.stream_unary("/plinth.v1.Any/stream_unary")(requests())
        assert raised_by_call(caught.value) is inner
