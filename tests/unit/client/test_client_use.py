"""What programs do to a client beside asking it: they close it at any moment, make it before there
is an event loop, give it times and metadata that gRPC takes badly."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from both_clients import Connect, failing, get, thing, until_ended
from patience import PATIENCE_S
from plinth.client import (
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Policy,
    Unavailable,
)
from things import ThingServer, message

SECRET = "plinth-\x07secret"


class Held:
    """Answers that say when they have begun, and end with their call."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.begun.set()
        until_ended(context)
        return thing(request.name)

    def watched(self, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield message("WatchThingResponse", thing={"size": 1}, resume_token="1")
        self.begun.set()
        until_ended(context)


async def closed_meanwhile(client: Any, held: Held, call: Any) -> None:
    """`call` ends as what it is, and not as if somebody had cancelled its task."""
    task = asyncio.ensure_future(call)
    assert await asyncio.to_thread(held.begun.wait, PATIENCE_S)
    await client.close()
    with pytest.raises(FailedPrecondition, match="closed; make another") as caught:
        await asyncio.wait_for(task, PATIENCE_S)
    assert caught.value.reason == "CLIENT_CLOSED"


async def test_a_call_on_a_client_that_is_closed_meanwhile(connect: Connect) -> None:
    held = Held()
    with ThingServer(GetThing=held.answer) as server:
        client = connect(server)
        await closed_meanwhile(client, held, client.unary("GetThing", get()))
        with pytest.raises(FailedPrecondition, match="closed"):
            await client.unary("GetThing", get())
    assert len(server.calls) == 1


async def test_a_watch_on_a_client_that_is_closed_meanwhile(connect: Connect) -> None:
    held = Held()
    with ThingServer(WatchThing=held.watched) as server:
        client = connect(server)

        async def watch() -> list[Any]:
            asked = message("WatchThingRequest")
            return [one async for one in client.stream("WatchThing", asked)]

        await closed_meanwhile(client, held, watch())
    assert len(server.calls) == 1


async def test_a_client_that_is_closed_does_not_wait_to_try_again(connect: Connect) -> None:
    tried = threading.Event()

    def answer(*_: Any) -> Any:
        tried.set()
        raise Unavailable("away", retry_after_s=20.0)

    with ThingServer(GetThing=answer) as server:
        client = connect(server)
        task = asyncio.ensure_future(client.unary("GetThing", get()))
        assert await asyncio.to_thread(tried.wait, PATIENCE_S)
        await client.close()
        with pytest.raises(FailedPrecondition, match="closed"):
            await task
    assert len(server.calls) == 1


async def test_a_task_that_is_cancelled_is(connect: Connect) -> None:
    held = Held()
    with ThingServer(GetThing=held.answer) as server:
        client = connect(server)
        task = asyncio.ensure_future(client.unary("GetThing", get()))
        assert await asyncio.to_thread(held.begun.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_an_asynchronous_client_is_for_the_loop_that_uses_it() -> None:
    with ThingServer() as server:
        plinth = AsyncClient(server.address)  # before there is a loop

        async def ask() -> None:
            with pytest.raises(FailedPrecondition, match="has no such call"):
                await plinth.models.get_model("models/none")

        asyncio.run(ask())
        asyncio.run(ask())  # that loop is gone, and its connection

        async def two() -> None:
            await ask()
            told = await asyncio.gather(
                asyncio.to_thread(asyncio.run, plinth.models.get_model("models/none")),
                return_exceptions=True,
            )
            assert isinstance(told[0], FailedPrecondition)
            assert told[0].reason == "ANOTHER_EVENT_LOOP"
            await plinth.close()

        asyncio.run(two())


@pytest.mark.parametrize("seconds", [math.inf, 1e12, 1e30])
async def test_a_long_time_is_no_time_that_is_over(connect: Connect, seconds: float) -> None:
    with ThingServer(GetThing=failing(0, NotFound(""))) as server:
        assert await connect(server).unary("GetThing", get(), seconds) == thing("a")


async def test_a_time_is_a_number(connect: Connect) -> None:
    with ThingServer() as server, pytest.raises(InvalidArgument, match="seconds, not NaN"):
        await connect(server).unary("GetThing", get(), math.nan)
    assert not server.calls


async def test_metadata_of_a_call_take_the_place_of_the_clients(connect: Connect) -> None:
    with ThingServer(GetThing=failing(0, NotFound(""))) as server:
        client = connect(server, "plinth-key", Policy(metadata={"X-Of-Client": "1"}))
        await client.unary(
            "GetThing", get(), **{"Authorization": "Bearer other", "x-of-client": "2"}
        )
    _, _, sent = server.calls[0]
    assert (sent["authorization"], sent["x-of-client"]) == ("Bearer other", "2")


@pytest.mark.parametrize("name", ["", "grpc-timeout", "raw-bin", "two words", ":path", "é"])
async def test_a_name_that_is_none_is_told_before_it_is_sent(connect: Connect, name: str) -> None:
    with ThingServer() as server, pytest.raises(InvalidArgument, match="no name of metadata"):
        await connect(server).unary("GetThing", get(), **{name: "x"})
    assert not server.calls


async def test_a_value_that_is_none_is_not_told(connect: Connect) -> None:
    with (
        ThingServer() as server,
        pytest.raises(InvalidArgument, match="authorization is not printable") as caught,
    ):
        await connect(server).unary("GetThing", get(), authorization=SECRET)
    assert "secret" not in str(caught.value)
    assert not server.calls


def test_a_key_as_it_was_read_from_its_file() -> None:
    with ThingServer() as server:
        for client in (Client(server.address, " plinth-key\n"), AsyncClient(server.address, "k\n")):
            assert "plinth-key" not in repr(vars(client))
        assert "plinth-key" not in repr(Policy(metadata={"authorization": "Bearer plinth-key"}))
        with (
            Client(server.address, "plinth-key\n") as plinth,
            pytest.raises(FailedPrecondition, match="has no such call"),
        ):
            plinth.models.get_model("models/none")
    with pytest.raises(InvalidArgument, match="holds no API key"):
        Client(server.address, " \n")


async def test_a_watch_that_stays_quiet_is_told_as_such(connect: Connect) -> None:
    def answer(_: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield message("WatchThingResponse", thing={"size": 1}, resume_token="1")
        until_ended(context)

    policy = Policy(quiet_s=0.2, stream_patience_s=0.0)
    with ThingServer(WatchThing=answer) as server:
        stream = connect(server, policy=policy).stream("WatchThing", message("WatchThingRequest"))
        with pytest.raises(Unavailable, match="gone quiet"):
            [one async for one in stream]
