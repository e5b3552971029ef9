"""Streams of generated text over connections that break: the caller sees an answer that did not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import PATIENCE_S
from plinth.client import Policy, Unavailable
from plinth.client.blocking import Transport
from plinth.client.channels import GatewayAddress
from plinth.client.progress import Answers, LostAnswer
from things import ThingServer, message, method

ANSWERS = ["One answer, of many tökens.", "Another 🙂 one."]
STOP = 1


def pieces(cuts: list[int], *, seed: int = 7, weights: str = "w", id: str = "a") -> list[Any]:
    """The messages of one call: both answers side by side, a token a character, cut after so many
    tokens each; the last one has the usage."""
    made = []
    left = {index: list(text) for index, text in enumerate(ANSWERS)}
    sizes = iter(cuts)
    while any(left.values()):
        for index, letters in left.items():
            if not letters:
                continue
            size = next(sizes, 3)
            now, left[index] = letters[:size], letters[size:]
            said = message(
                "StreamTextResponse",
                index=index,
                text="".join(now),
                tokens=[{"id": ord(letter)} for letter in now],
                finish_reason=0 if left[index] else STOP,
            )
            made.append(said)
    first = {"id": id, "seed": seed, "weights_digest": weights, "revision": f"chat@{weights}"}
    made[0].MergeFrom(message("StreamTextResponse", **first))
    made[-1].usage.tokens = sum(map(len, ANSWERS))
    return made


def check(told: list[Any]) -> None:
    texts: dict[int, str] = defaultdict(str)
    ids: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, int] = defaultdict(int)
    for one in told:
        texts[one.index] += one.text
        ids[one.index] += [token.id for token in one.tokens]
        ends[one.index] += bool(one.finish_reason)
    assert list(texts.values()) == ANSWERS
    assert [[chr(id) for id in one] for one in ids.values()] == [list(text) for text in ANSWERS]
    assert ends == {0: 1, 1: 1}
    assert [one.id for one in told if one.id] == ["a"]
    assert sum(one.HasField("usage") for one in told) == 1


cut_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(calls=st.lists(st.tuples(cut_sizes, st.integers(1, 12)), max_size=4), last=cut_sizes)
def test_what_is_told_is_one_answer_wherever_it_breaks(
    calls: list[tuple[list[int], int]], last: list[int]
) -> None:
    """Each call is cut otherwise, and breaks after some messages; the last one ends."""
    answers = Answers(message("StreamTextRequest", model="chat"))
    told = []
    for number, (cuts, after) in enumerate([*calls, (last, 1000)]):
        made = pieces(cuts, id="b" if number else "a")
        for one in made[:after] if number < len(calls) else made:
            if one.HasField("usage") and number < len(calls):
                break  # the end of a stream is no break
            if answers.took(one):
                told.append(one)
        answers.broke()
    check(told)
    assert answers.request.options.sampling.seed == 7


@pytest.mark.parametrize("broken", [0, 1, 4])
async def test_a_stream_goes_on_at_another_connection(broken: int) -> None:
    calls: list[Any] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        calls.append(request)
        if len(calls) == 1:
            yield from pieces([2])[:broken]
            raise Unavailable("the gateway stops")
        yield from pieces([5], id="b" if broken else "a")

    with ThingServer(StreamText=answer) as server:
        policy = Policy(patience_s=PATIENCE_S, stream_patience_s=PATIENCE_S)
        transport = Transport(GatewayAddress.parse(server.address), "", policy)
        asked = message("StreamTextRequest", model="chat")
        told = list(transport.stream(method("StreamText"), asked, None, None))
        transport.close()
    check(told)
    first, again = calls
    assert not first.options.sampling.HasField("seed")
    # Before a message nobody has seen a seed.
    assert again.options.sampling.HasField("seed") is bool(broken)


def begun() -> Answers:
    answers = Answers(message("StreamTextRequest"))
    for one in pieces([2])[:4]:
        answers.took(one)
    answers.broke()
    return answers


def test_other_weights_are_another_answer() -> None:
    with pytest.raises(LostAnswer, match="chat@v answers by now"):
        begun().took(pieces([2], weights="v")[0])


def test_another_token_is_another_answer() -> None:
    other = pieces([4])[0]
    other.tokens[1].id += 1
    with pytest.raises(LostAnswer, match="same seed made another one"):
        begun().took(other)


def test_what_can_not_go_on_is_told_as_such() -> None:
    calls: list[Any] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        calls.append(request)
        yield from pieces([2], weights=f"w{len(calls)}")[:2]
        raise Unavailable("the gateway stops")

    with ThingServer(StreamText=answer) as server:
        transport = Transport(GatewayAddress.parse(server.address), "", Policy())
        stream = transport.stream(method("StreamText"), message("StreamTextRequest"), None, None)
        with pytest.raises(Unavailable, match=r"chat@w2 answers by now\. Ask anew") as caught:
            list(stream)
        transport.close()
    assert caught.value.reason == "ANSWER_LOST"


def test_a_request_that_ends_its_servers_is_not_sent_for_ever() -> None:
    """Each tells as much of the answer as the one before, and is lost."""
    calls: list[Any] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        calls.append(request)
        yield from pieces([2])[:3]
        raise Unavailable("the gateway stops")

    with ThingServer(StreamText=answer) as server:
        policy = Policy(stream_patience_s=10 * PATIENCE_S)
        transport = Transport(GatewayAddress.parse(server.address), "", policy)
        stream = transport.stream(method("StreamText"), message("StreamTextRequest"), None, None)
        told = []
        with pytest.raises(Unavailable, match="the gateway stops"):
            for one in stream:
                told.append(one)
        transport.close()
    assert len(told) == 3
    assert len(calls) == 4
