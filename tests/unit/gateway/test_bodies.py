"""A body is bounded while it is read, and a large one is parsed beside the loop."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from typing import Any

import pytest
from starlette.requests import Request

from plinth.gateway import bounded_json
from plinth.gateway.openai.requests import ChatBody, CompletionBody
from plinth.gateway.preferences.bodies import CreateBody
from plinth.gateway.preferences.queries import CollectionQuery
from plinth.gateway.rest import bodies
from plinth.shared.errors import InvalidArgument, PlinthError

LIMIT = 2 * 2**20
OK = b'"model":"chat","messages":[{"role":"user","content":"x"}]'


def request(*parts: bytes, query: bytes = b"", **headers: str) -> Request:
    messages = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": named, "query_string": query}, receive)


@pytest.mark.parametrize(("size", "beside"), [(100, False), (20_000, True)])
@pytest.mark.parametrize("packed", [False, True])
async def test_a_large_body_is_parsed_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, beside: bool, packed: bool
) -> None:
    threads = []
    loads = bounded_json.loads

    def record(raw: bytearray) -> Any:
        threads.append(threading.current_thread())
        return loads(raw)

    monkeypatch.setattr(bounded_json, "loads", record)
    raw = json.dumps({"text": "x" * size}).encode()
    headers = {"content_encoding": "gzip"} if packed else {}
    asked = request(gzip.compress(raw) if packed else raw, **headers)
    assert await bodies.read(asked, dict, LIMIT) == {"text": "x" * size}
    assert [thread is not threading.main_thread() for thread in threads] == [beside or packed]


def shapes() -> dict[str, tuple[Any, bytes]]:
    """Bodies of two megabytes, each with something that once cost seconds or gigabytes."""
    size = LIMIT - 1_000

    def many(unit: bytes) -> bytes:
        return b",".join([unit] * (size // (len(unit) + 1)))

    def completion(prompt: bytes) -> tuple[Any, bytes]:
        return CompletionBody.of, b'{"model":"chat","prompt":' + prompt + b"}"

    def chat(more: bytes) -> tuple[Any, bytes]:
        return ChatBody.of, b"{" + OK + b"," + more + b"}"

    def preferences(raw: bytes) -> tuple[Any, bytes]:
        return lambda value: bodies.validated(CreateBody, value), raw

    keys = b",".join(b'"k%d":1' % number for number in range(100_000))
    emoji = "🎉".encode()
    return {
        "objects for prompts": completion(b"[" + many(b"{}") + b"]"),
        "lists for prompts": completion(b"[" + many(b"[]") + b"]"),
        "texts for prompts": completion(b"[" + many(b'"a"') + b"]"),
        "too many ids": completion(b"[" + many(b"1") + b"]"),
        "fractions for ids": completion(b"[" + many(b"1.5") + b"]"),
        "one long number": completion(b"9" * size),
        "nesting": completion(b"[" * size),
        "white space": completion(b"[1" + b" " * size + b"x]"),
        "half a pair": completion(b'"' + b"a" * size + b'\\ud800"'),
        "wide text": completion(b'"' + emoji + b"a" * size + b'"'),
        "wide text with escapes": completion(b'"' + emoji + b"aaaa\\n" * (size // 6) + b'"'),
        "pairs": completion(b'"' + b"\\ud83d\\ude00" * (size // 12) + b'"'),
        "stop strings": chat(b'"stop":[' + many(b"1") + b"]"),
        "metadata": chat(b'"metadata":{' + keys + b"}"),
        "unknown fields": chat(keys),
        "one field again and again": chat(many(b'"a":{}')),
        "parts": (
            ChatBody.of,
            b'{"model":"chat","messages":[{"role":"user","content":[' + many(b"{}") + b"]}]}",
        ),
        "messages": (ChatBody.of, b'{"model":"chat","messages":[' + many(b"{}") + b"]}"),
        "rules": chat(b'"best_of":2,"select":{"by":"reward","rules":[' + many(b'{"x":1}') + b"]}"),
        "tasks": preferences(b'{"tasks":[' + many(b'{"x":1}') + b"]}"),
        "prompts of tasks": preferences(b'{"tasks":[{"prompt":[' + many(b'{"x":1}') + b"]}]}"),
    }


@pytest.mark.parametrize("name", shapes())
async def test_no_shape_of_a_body_costs_twenty_megabytes(name: str) -> None:
    make, raw = shapes()[name]
    pieces = [raw[at : at + 65_536] for at in range(0, len(raw), 65_536)]
    asked = request(*pieces)
    del raw, pieces
    tracemalloc.start()
    try:
        try:
            await bodies.read(asked, make, LIMIT)
        except InvalidArgument as error:
            assert len(error.message) < 1_000  # no part of the body comes back
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (ChatBody.of, {"model": "m", "messages": [{}] * 1_000}),
        (ChatBody.of, {"model": "m", "messages": [{"role": "user", "content": [{}] * 30_000}]}),
        (
            ChatBody.of,
            {"model": "m", "messages": [{"role": "user", "content": "x"}], "stop": [1] * 30_000},
        ),
        (CompletionBody.of, {"model": "m", "prompt": [{}] * 2_000}),
        (CompletionBody.of, {"model": "m", "prompt": [[{}]] * 2_000}),
        (lambda value: bodies.validated(CreateBody, value), {"tasks": [{"x": 1}] * 100}),
        (
            lambda value: bodies.validated(CreateBody, value),
            {"tasks": [{"prompt": [{"x": 1}] * 1_000, "gold": [], "responses": [{}] * 8}] * 100},
        ),
    ],
    ids=["messages", "parts", "stops", "prompts", "ids", "tasks", "task-parts"],
)
def test_validation_ends_after_a_bounded_number_of_mistakes(
    monkeypatch: pytest.MonkeyPatch, make: Any, value: dict[str, Any]
) -> None:
    counted = []
    explain = bodies._explain

    def count(error: Any, body: Any) -> Any:
        counted.append(error.error_count())
        return explain(error, body)

    monkeypatch.setattr(bodies, "_explain", count)
    with pytest.raises(InvalidArgument):
        make(value)
    assert sum(counted) <= 16


async def test_no_more_than_the_limit_is_read() -> None:
    asked = request(*[b"x" * 1_000] * 50)
    with pytest.raises(bodies.BodyTooLarge):
        await bodies.read(asked, dict, 10_000)
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(bodies.BodyTooLarge):
        await bodies.read(request(bomb, content_encoding="gzip"), dict, 100_000)
    with pytest.raises(PlinthError) as caught:
        await bodies.read_bytes(request(b"x", content_encoding="br"), 10)
    assert caught.value.http == 415
    packed = gzip.compress(b'{"a": 1}\n')
    assert await bodies.read_bytes(request(packed, content_encoding="gzip"), 99) == b'{"a": 1}\n'


async def test_the_mark_that_some_editors_put_before_utf8_is_passed_over() -> None:
    assert await bodies.read(request(b'\xef\xbb\xbf{"a":1}'), dict, 100) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (rb'{"\ud800": 1}', "a key: lone surrogate"),
        (rb'{"a": {"\udfff": 1}}', "a: a key: lone surrogate"),
        (rb'{"a": ["x", "\ud800"]}', "a.1: lone surrogate"),
    ],
)
def test_half_a_pair_is_told_with_its_place(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bodies.parse(body)
    assert caught.value.message.startswith(words)


def test_a_query_string_is_bounded() -> None:
    long = b"&".join(b"k%d=1" % number for number in range(2_000))
    with pytest.raises(InvalidArgument, match="query string"):
        bodies.query(request(query=long), CollectionQuery)
    assert bodies.query(request(query=b"collection=a"), CollectionQuery).collection == "a"
