"""Messages are counted from their bytes: nothing that a parser would make of them gets by."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from plinth.internal.v1 import tokenizer_pb2
from plinth.shared.errors import InvalidArgument
from plinth.shared.rpc.wire import Bounds, check
from plinth.v1 import chat_pb2, generation_pb2, jobs_pb2, preferences_pb2, sampling_pb2

KINDS: list[Any] = [
    generation_pb2.ChatRequest,
    tokenizer_pb2.DecodeRequest,
    tokenizer_pb2.ApplyChatTemplatesRequest,
    preferences_pb2.BatchCreatePreferenceTasksRequest,
    jobs_pb2.JobProgress,  # maps and numbers of a fixed size
]
NO_BOUND = 1 << 30


def within(data: bytes, kind: Any, fields: int = NO_BOUND, packed: int = NO_BOUND) -> bool:
    try:
        check(data, kind.DESCRIPTOR, Bounds(fields, packed))
    except InvalidArgument:
        return False
    return True


def made(message: Message) -> int:
    """Messages and texts that a parser made: what lies in lists, one by one, and what doesn't."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            count += len(value)
        elif not field.is_repeated:
            count += 1 + (made(value) if field.message_type else 0)
        elif field.message_type is not None:
            count += len(value) + sum(map(made, value))
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            count += len(value)
    return count


def numbers(message: Message) -> int:
    """In packed lists."""
    count = 0
    for field, value in message.ListFields():
        if field.is_repeated and field.is_packed:
            count += len(value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            count += sum(map(numbers, value)) if field.is_repeated else numbers(value)
    return count


def varint(value: int, padding: int = 0) -> bytes:
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value | 128, *[128] * (padding - 1), 0] if padding else [*out, value])


VARINTS = st.builds(varint, st.integers(0, 1 << 40), st.integers(0, 3))
NUMBERS = st.one_of(st.integers(1, 12), st.sampled_from([20, 99, 5000]))


@st.composite
def fields(draw: Any, depth: int = 3) -> bytes:
    """Some fields, of numbers that are known or not, of the right wire type or not, in groups or
    not; some are no fields at all."""
    out = b""
    for _ in range(draw(st.integers(0, 5))):
        number = draw(NUMBERS)
        wire = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 5, 7]))
        body = b""
        if wire == 0:
            body = draw(VARINTS)
        elif wire in (1, 5):
            body = bytes(8 if wire == 1 else 4)
        elif wire == 2:
            inside = st.binary(max_size=6)
            value = draw(st.one_of(fields(depth - 1), inside) if depth else inside)
            body = varint(len(value), draw(st.integers(0, 1))) + value
        elif wire == 3:
            body = (draw(fields(depth - 1)) if depth else b"") + varint(number << 3 | 4)
        out += varint(number << 3 | wire, draw(st.sampled_from([0, 0, 0, 1]))) + body
    return out


# What lies in a group is unknown, and no broken message, though its number is a message's.
GROUP = bytes([3 << 3 | 3, 2 << 3 | 2, 1, 255, 3 << 3 | 4])


@given(data=fields(), kind=st.sampled_from(KINDS))
@example(data=GROUP + bytes([2 << 3 | 2, 0] * 9), kind=generation_pb2.ChatRequest)
def test_nothing_that_is_parsed_gets_by_uncounted(data: bytes, kind: Any) -> None:
    try:
        message = kind.FromString(data)
    except DecodeError:
        within(data, kind)  # whatever it says: the parser has the last word
        return
    if found := made(message):
        assert not within(data, kind, fields=found - 1)
    if found := numbers(message):
        # Not each of a packed list needs to come in one.
        assert not within(data, kind, fields=found - 1) or not within(data, kind, packed=0)


@st.composite
def chats(draw: Any) -> Any:
    text = st.text(max_size=200)
    return generation_pb2.ChatRequest(
        model=draw(text),
        messages=draw(
            st.lists(st.builds(chat_pb2.ChatMessage, role=text, content=text), max_size=8)
        ),
        options=generation_pb2.GenerationOptions(
            stop=draw(st.lists(text, max_size=4)),
            sampling=sampling_pb2.SamplingParams(
                temperature=draw(st.floats(0, 1, width=32)),
                seed=draw(st.integers(0, 1 << 60)),
                stop_token_ids=draw(st.lists(st.integers(0, 1 << 31), max_size=9)),
            ),
        ),
    )


@given(chat=chats())
def test_what_a_library_writes_is_counted_exactly(chat: Any) -> None:
    data = chat.SerializeToString()
    ids = len(chat.options.sampling.stop_token_ids)
    count = made(chat) + (ids > 0)  # a packed list is one field
    assert within(data, generation_pb2.ChatRequest, fields=count, packed=ids)
    assert not count or not within(data, generation_pb2.ChatRequest, fields=count - 1)
    assert not ids or not within(data, generation_pb2.ChatRequest, packed=ids - 1)


def test_entries_of_maps_count_with_key_and_value() -> None:
    message = jobs_pb2.JobProgress(figures={"a": 2.0, "b": 0.0}, loss=1.0)
    data = message.SerializeToString()
    assert within(data, jobs_pb2.JobProgress, fields=7)
    assert not within(data, jobs_pb2.JobProgress, fields=6)


@pytest.mark.parametrize(
    ("message", "bounds", "field", "words"),
    [
        (
            generation_pb2.ChatRequest(messages=[chat_pb2.ChatMessage()] * 11),
            Bounds(10, 10),
            "messages",
            "messages: the message has more than 10 fields",
        ),
        (
            generation_pb2.GenerationOptions(
                sampling=sampling_pb2.SamplingParams(stop_token_ids=range(100, 200))
            ),
            Bounds(10, 99),
            "sampling.stop_token_ids",
            "sampling.stop_token_ids: the message has more than 99 numbers",
        ),
        (
            tokenizer_pb2.ApplyChatTemplatesRequest(
                conversations=[
                    tokenizer_pb2.Conversation(messages=[chat_pb2.ChatMessage(role="a")] * 9)
                ]
            ),
            Bounds(10, 10),
            "conversations.messages.role",
            "send fewer at once",
        ),
    ],
)
def test_an_error_says_where_and_how_many(
    message: Message, bounds: Bounds, field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(message.SerializeToString(), message.DESCRIPTOR, bounds)
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize("before", [b"", b"\x0a"], ids=["key", "length"])
def test_a_number_without_an_end_is_not_made(before: bytes) -> None:
    """Of 2 MB: to add to it byte by byte would take minutes."""
    data = before + b"\xff" * 2_000_000
    assert within(data, generation_pb2.ChatRequest)
    with pytest.raises(DecodeError):
        generation_pb2.ChatRequest.FromString(data)
