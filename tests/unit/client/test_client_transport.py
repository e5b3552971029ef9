"""Calls over a real connection: which are repeated, which go on, what comes of errors. Each for the
client that blocks and for asyncio's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from both_clients import Blocking, Connect, failing, get, thing, until_ended
from patience import PATIENCE_S
from plinth.client import (
    Client,
    InvalidArgument,
    NotFound,
    Policy,
    ResourceExhausted,
    Unavailable,
)
from things import ThingServer, message, method


async def test_a_call_brings_its_key_and_metadata(connect: Connect) -> None:
    policy = Policy(metadata={"x-of-client": "1"})
    with ThingServer(GetThing=failing(0, NotFound(""))) as server:
        client = connect(server, "plinth-key", policy)
        assert await client.unary("GetThing", get(), **{"x-of-call": "2"}) == thing("a")
    _, _, sent = server.calls[0]
    assert sent["authorization"] == "Bearer plinth-key"
    assert (sent["x-of-client"], sent["x-of-call"]) == ("1", "2")


async def test_what_the_platform_raised_is_raised(connect: Connect) -> None:
    error = InvalidArgument("no such thing", reason="THING", field="name", metadata={"at": "1"})
    raises = pytest.raises(InvalidArgument, match="no such thing")
    with ThingServer(GetThing=failing(1, error)) as server, raises as caught:
        await connect(server).unary("GetThing", get())
    told = caught.value
    assert (told.reason, told.field, told.metadata) == ("THING", "name", {"at": "1"})
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "error", [Unavailable("not now"), ResourceExhausted("full", retry_after_s=0.01)]
)
async def test_what_may_be_repeated_is(connect: Connect, error: Exception) -> None:
    with ThingServer(GetThing=failing(2, error)) as server:
        assert await connect(server).unary("GetThing", get()) == thing("a")
    assert len(server.calls) == 3


async def test_what_may_not_be_repeated_is_not(connect: Connect) -> None:
    answers = {"AddThing": failing(1, Unavailable("half done"))}
    with ThingServer(**answers) as server, pytest.raises(Unavailable, match="half done"):
        await connect(server).unary("AddThing", get())
    assert len(server.calls) == 1


async def test_a_refusal_before_anything_was_done_is_repeated_all_the_same(
    connect: Connect,
) -> None:
    with ThingServer(AddThing=failing(1, ResourceExhausted("full", retry_after_s=0.01))) as server:
        assert await connect(server).unary("AddThing", get()) == thing("a")
    assert len(server.calls) == 2


async def test_a_full_store_is_not_asked_again(connect: Connect) -> None:
    full = failing(1, ResourceExhausted("the disk is full"))
    with ThingServer(GetThing=full) as server, pytest.raises(ResourceExhausted):
        await connect(server).unary("GetThing", get())
    assert len(server.calls) == 1


async def test_a_repeated_request_has_the_same_id(connect: Connect) -> None:
    with ThingServer(CreateThing=failing(1, Unavailable("gone"))) as server:
        client = connect(server)
        await client.unary("CreateThing", message("CreateThingRequest", name="a"))
        first, again = (asked.request_id for asked in server.asked("CreateThing"))
        assert first
        assert first == again
        await client.unary("CreateThing", message("CreateThingRequest", name="a"))
        assert server.asked("CreateThing")[-1].request_id != first
        own = message("CreateThingRequest", name="a", request_id="mine")
        await client.unary("CreateThing", own)
        assert server.asked("CreateThing")[-1].request_id == "mine"


async def test_the_time_is_that_of_all_attempts(connect: Connect) -> None:
    raises = pytest.raises(Unavailable, match="never")
    with ThingServer(GetThing=failing(10**9, Unavailable("never"))) as server, raises:
        await connect(server).unary("GetThing", get(), 0.5)
    assert len(server.calls) > 1


async def test_patience_ends(connect: Connect) -> None:
    raises = pytest.raises(Unavailable, match="never")
    with ThingServer(GetThing=failing(10**9, Unavailable("never"))) as server, raises:
        await connect(server, policy=Policy(patience_s=0.3)).unary("GetThing", get())


async def test_a_gateway_that_never_answered_is_told_of_soon(connect: Connect) -> None:
    server = ThingServer()
    server.port = 1
    client = connect(server, policy=Policy(patience_s=10 * PATIENCE_S))
    with pytest.raises(Unavailable, match=r"the gateway at 127\.0\.0\.1:1 can't be reached"):
        await asyncio.wait_for(client.unary("GetThing", get(), 10 * PATIENCE_S), PATIENCE_S)


async def test_a_call_goes_on_at_a_gateway_that_came_back(connect: Connect) -> None:
    with ThingServer(GetThing=failing(0, NotFound(""))) as server:
        client = connect(server)
        await client.unary("GetThing", get())
        server.kill()
        again = asyncio.create_task(client.unary("GetThing", get("b"), PATIENCE_S))
        await asyncio.sleep(0.3)
        assert not again.done()
        server.start()
        assert await again == thing("b")


def watched(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
    """Of numbers to 5, those behind the token; breaks off twice, and has a heartbeat after each."""
    for at in range(int(request.resume_token or 0) + 1, 6):
        yield message("WatchThingResponse", thing={"size": at}, resume_token=str(at))
        yield message("WatchThingResponse", resume_token=str(at))
        if at in (2, 4):
            raise Unavailable("the gateway stops")


async def test_a_watch_goes_on_where_it_broke(connect: Connect) -> None:
    with ThingServer(WatchThing=watched) as server:
        asked = message("WatchThingRequest", name="a")
        sizes = [one.thing.size async for one in connect(server).stream("WatchThing", asked)]
    assert sizes == [1, 2, 3, 4, 5]
    assert [asked.resume_token for asked in server.asked("WatchThing")] == ["", "2", "4"]
    assert not asked.resume_token  # the caller's own message is left alone


async def test_a_watch_goes_on_at_a_gateway_that_was_killed(connect: Connect) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if not request.resume_token:
            yield message("WatchThingResponse", thing={"size": 1}, resume_token="1")
            yield message("WatchThingResponse", resume_token="2")
            until_ended(context)
        yield message("WatchThingResponse", thing={"size": 3}, resume_token="3")

    with ThingServer(WatchThing=answer) as server:
        stream = connect(server).stream("WatchThing", message("WatchThingRequest"))
        assert (await anext(stream)).thing.size == 1
        next_one = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.2)
        server.kill()
        server.start()
        assert (await next_one).thing.size == 3
        assert [one async for one in stream] == []


async def test_a_watch_that_has_gone_quiet_is_asked_for_again(connect: Connect) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if not request.resume_token:
            yield message("WatchThingResponse", thing={"size": 1}, resume_token="1")
            until_ended(context)
        yield message("WatchThingResponse", thing={"size": 2}, resume_token="2")

    policy = Policy(quiet_s=0.3, stream_patience_s=PATIENCE_S)
    with ThingServer(WatchThing=answer) as server:
        client = connect(server, policy=policy)
        stream = client.stream("WatchThing", message("WatchThingRequest"))
        assert [one.thing.size async for one in stream] == [1, 2]


async def test_a_watch_ends_with_what_is_an_answer(connect: Connect) -> None:
    def answer(*_: Any) -> Iterator[Any]:
        yield message("WatchThingResponse", thing={"size": 1}, resume_token="1")
        raise NotFound("the thing was deleted")

    with ThingServer(WatchThing=answer) as server:
        stream = connect(server).stream("WatchThing", message("WatchThingRequest"))
        await anext(stream)
        with pytest.raises(NotFound, match="was deleted"):
            await anext(stream)
    assert len(server.calls) == 1


async def test_a_stream_without_a_position_ends_where_it_breaks(connect: Connect) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        yield thing(request.name)
        raise Unavailable("gone")

    with ThingServer(TellThing=answer) as server:
        stream = connect(server).stream("TellThing", get())
        await anext(stream)
        with pytest.raises(Unavailable, match="gone"):
            await anext(stream)
    assert len(server.calls) == 1


async def test_a_closed_stream_ends_its_call(connect: Connect) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(lambda: loop.call_soon_threadsafe(ended.set))
        yield thing(request.name)
        until_ended(context)

    with ThingServer(TellThing=answer) as server:
        client = connect(server)
        stream = client._transport.stream(method("TellThing"), get(), None, None)
        if isinstance(client, Blocking):
            await asyncio.to_thread(next, stream)
            stream.close()
        else:
            await anext(stream)
            await stream.aclose()
        await asyncio.wait_for(ended.wait(), PATIENCE_S)


async def test_requests_in_a_stream(connect: Connect) -> None:
    def answer(requests: list[Any], _: grpc.ServicerContext) -> Any:
        return thing("all", sum(one.thing.size for one in requests))

    with ThingServer(SendThings=answer) as server:
        sent = [thing("a", 1), thing("b", 2)]
        assert await connect(server).upload("SendThings", sent) == thing("all", 3)


async def test_a_list_is_all_its_pages(connect: Connect) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        at = int(request.page_token or 0)
        names = "abcde"[at : at + request.page_size]
        more = str(at + request.page_size) if at + request.page_size < 5 else ""
        return message(
            "ListThingsResponse", things=[{"name": name} for name in names], next_page_token=more
        )

    with ThingServer(ListThings=answer) as server:
        asked = message("ListThingsRequest", page_size=2)
        listed = await connect(server).listed(asked)
    assert "".join(one.name for one in listed) == "abcde"
    assert [asked.page_token for asked in server.asked("ListThings")] == ["", "2", "4"]
    assert not asked.page_token


def test_what_is_no_address_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgument, match="REST API"):
        Client("http://127.0.0.1:8080")
