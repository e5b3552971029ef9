"""Hostile messages cost the gateway's public gRPC port little at a time, and little memory.

Each attack runs beside a neighbour's stream; what an attack may cost stands in `hostile.py`. The
messages are spelled by hand: no library writes most of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from hostile import WatchedGateway, watched_gateway
from patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 2 * 2**20  # gateway.max_body_bytes
GENERATION = "/plinth.v1.GenerationService/"
TOKENIZER = "/plinth.v1.TokenizationService/"
OPEN_INFERENCE = "/inference.GRPCInferenceService/"
PREFERENCES = "/plinth.v1.PreferenceService/"
RUNS = "/plinth.v1.RunService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
VARINT, DELIMITED, GROUP, END_GROUP = 0, 2, 3, 4


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def field(number: int, value: bytes) -> bytes:
    """A string, a message, or packed numbers."""
    return tag(number, DELIMITED) + varint(len(value)) + value


def many(unit: bytes, size: int = SIZE) -> bytes:
    return unit * (size // len(unit))


MODEL = field(1, b"long")
ONE_TOKEN = field(1, tag(5, VARINT) + varint(1))  # sampling.max_tokens


def options(of: bytes) -> bytes:
    """Of a chat."""
    return field(3, of)


MESSAGE = field(2, field(1, b"user") + field(2, b"x"))
CHAT = MODEL + options(ONE_TOKEN) + MESSAGE
COMPLETION = MODEL + field(5, ONE_TOKEN)
WIDE = "🎉".encode() + b"a" * SIZE
KILO = field(2, field(1, b"user") + field(2, b"a" * 2_000))


def said(content: bytes) -> bytes:
    return MODEL + options(ONE_TOKEN) + field(2, field(1, b"user") + field(2, content))


def inference(*texts: bytes) -> bytes:
    """Prompts, raw."""
    shape = field(3, varint(len(texts)))
    tensor = field(1, b"text_input") + field(2, b"BYTES") + shape
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return MODEL + field(5, tensor) + field(7, raw)


# By name: the method, and its message.
MANY_THINGS = {
    "messages": (GENERATION + "Chat", MODEL + many(field(2, b""))),
    "stop strings": (GENERATION + "Chat", CHAT + options(many(field(2, b"a")))),
    "empty stop strings": (GENERATION + "Chat", CHAT + options(many(field(2, b"")))),
    "models": (GENERATION + "Chat", CHAT + many(field(1, b"m"))),
    "options": (GENERATION + "Chat", CHAT + many(field(3, b""))),
    "parameters": (GENERATION + "Chat", CHAT + options(many(field(1, b"")))),
    "rules": (GENERATION + "Chat", CHAT + field(5, many(field(3, b"")))),
    "ids": (GENERATION + "Chat", CHAT + options(field(1, many(tag(6, VARINT) + b"\1")))),
    "packed ids": (GENERATION + "Chat", CHAT + options(field(1, field(6, many(b"\1"))))),
    "packed ids, one by one": (
        GENERATION + "Chat",
        CHAT + options(field(1, many(field(6, b"\1")))),
    ),
    "fields that nobody knows": (GENERATION + "Chat", CHAT + many(tag(99, VARINT) + b"\1")),
    "groups": (GENERATION + "Chat", CHAT + many(tag(99, GROUP) + tag(99, END_GROUP))),
    "groups in groups": (GENERATION + "Chat", CHAT + many(tag(99, GROUP))),
    "stop strings of a completion": (
        GENERATION + "Complete",
        MODEL + field(5, many(field(2, b"a"))),
    ),
    "ids of a completion": (GENERATION + "Complete", MODEL + field(3, field(1, many(b"\1")))),
    "unknown fields for no fields": (
        "/plinth.v1.ModelService/ListModels",
        many(tag(9, VARINT) + b"\1"),
    ),
    "texts to encode": (TOKENIZER + "Encode", MODEL + many(field(2, b""))),
    "sequences to decode": (TOKENIZER + "Decode", MODEL + many(field(2, b""))),
    "ids to decode": (TOKENIZER + "Decode", MODEL + field(2, field(1, many(b"\1")))),
    "inputs": (OPEN_INFERENCE + "ModelInfer", MODEL + many(field(5, b""))),
    "outputs": (OPEN_INFERENCE + "ModelInfer", MODEL + many(field(6, b""))),
    "raw inputs": (OPEN_INFERENCE + "ModelInfer", MODEL + many(field(7, b""))),
    "an input's elements": (
        OPEN_INFERENCE + "ModelInfer",
        MODEL + field(5, field(5, many(field(8, b"")))),
    ),
    "a conversation": (TOKENIZER + "ApplyChatTemplate", MODEL + many(field(2, b""))),
    "tasks": (
        PREFERENCES + "BatchCreatePreferenceTasks",
        many(field(2, b"")) + many(field(1, b""), 100),
    ),
    "overrides": (
        RUNS + "CreateRun",
        field(2, field(2, many(field(2, field(1, b"a"))))),
    ),
}
LONG_THINGS = {
    "text": (GENERATION + "Chat", said(b"a" * SIZE)),
    "wide text": (GENERATION + "Chat", said(WIDE)),
    "text with a NUL behind it": (GENERATION + "Chat", said(b"a" * SIZE + b"\0")),
    "wide text with a NUL behind it": (GENERATION + "Chat", said(WIDE + b"\0")),
    "text that is half a character": (GENERATION + "Chat", said(WIDE + b"\xf0\x9f")),
    "a thousand messages": (GENERATION + "Chat", MODEL + options(ONE_TOKEN) + KILO * 1_020),
    "a message that is cut": (GENERATION + "Chat", said(b"a" * SIZE)[:-1]),
    "a completion's text": (GENERATION + "Complete", COMPLETION + field(2, b"a" * SIZE)),
    "a completion's wide text": (GENERATION + "Complete", COMPLETION + field(2, WIDE)),
    "a name": (GENERATION + "Chat", CHAT + field(1, WIDE)),
    "a user": (GENERATION + "Chat", CHAT + options(field(4, WIDE))),
    "a text for inference": (OPEN_INFERENCE + "ModelInfer", inference(b"a" * SIZE)),
    "a wide text for inference": (OPEN_INFERENCE + "ModelInfer", inference(WIDE)),
    "texts for inference": (OPEN_INFERENCE + "ModelInfer", inference(*[b"a"] * 30_000)),
    "a text to encode": (TOKENIZER + "Encode", MODEL + field(2, b"a" * SIZE)),
    "a wide text to encode": (TOKENIZER + "Encode", MODEL + field(2, WIDE)),
    "as much text as is encoded": (TOKENIZER + "Encode", MODEL + field(2, b"a" * (SIZE // 2 - 99))),
    "as much wide text": (TOKENIZER + "Encode", MODEL + field(2, WIDE[: SIZE // 2 - 99])),
}
NOBODYS = {
    "a service's name": (HEALTH + "Check", field(1, b"a" * SIZE)),
    "services": (HEALTH + "Check", many(field(1, b"a"))),
    "unknown fields": (HEALTH + "Check", many(tag(9, VARINT) + b"\1")),
    "a watched service's name": (HEALTH + "Watch", field(1, b"a" * SIZE)),
    "a chat": (GENERATION + "Chat", MODEL + many(field(2, b""))),
    "reflection": (REFLECTION, many(field(3, b"a"))),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WatchedGateway]:
    async with watched_gateway(tmp_path_factory.mktemp("hostile"), redis_server) as gateway:
        yield gateway


async def ask(
    gateway: WatchedGateway, method: str, message: bytes, key: bool = True, **options: Any
) -> str:
    """The name of the status that the call ends with, and what it says. options: the channel's."""
    metadata = [("authorization", f"Bearer {gateway.stack.key}")] if key else []
    options["options"] = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(gateway.stack.grpc_address, **options) as channel:
        call = channel.unary_stream(method)(message, metadata=metadata, timeout=PATIENCE_S)
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for _ in call:
                    if method.endswith("Watch"):
                        break
            return "OK"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"


SHORT = ("messages", "stop strings", "ids", "a conversation", "groups in groups")


def each(shapes: dict[str, tuple[str, bytes]], *, but: tuple[str, ...] = ()) -> list[Any]:
    """All of them; in `make test` those that `but` names."""
    return [
        pytest.param(*shape, id=name, marks=[] if name in but else pytest.mark.slow)
        for name, shape in shapes.items()
    ]


@pytest.mark.parametrize(("method", "message"), each(MANY_THINGS, but=SHORT))
async def test_a_message_of_many_things_costs_little_and_is_refused(
    gateway: WatchedGateway, method: str, message: bytes
) -> None:
    said = []

    async def attack() -> None:
        said.append(await ask(gateway, method, message))

    await gateway.survives(attack)
    assert said[-1].startswith("INVALID_ARGUMENT")
    assert "the message has more than" in said[-1]


@pytest.mark.parametrize(("method", "message"), each(LONG_THINGS, but=("wide text",)))
async def test_a_long_message_costs_little(
    gateway: WatchedGateway, method: str, message: bytes
) -> None:
    await gateway.survives(lambda: ask(gateway, method, message))


@pytest.mark.parametrize(("method", "message"), each(NOBODYS, but=("services", "a chat")))
async def test_who_has_no_key_costs_little(
    gateway: WatchedGateway, method: str, message: bytes
) -> None:
    await gateway.survives(lambda: ask(gateway, method, message, key=False))


async def test_a_message_over_the_limit_is_not_made(gateway: WatchedGateway) -> None:
    said = []

    async def attack() -> None:
        said.append(
            await ask(gateway, GENERATION + "Chat", MODEL + many(field(2, b""), 12 * SIZE // 2))
        )

    await gateway.survives(attack)
    assert said[-1].startswith("RESOURCE_EXHAUSTED")


@pytest.mark.slow
async def test_what_is_small_until_it_is_unpacked_costs_little(gateway: WatchedGateway) -> None:
    """300 KB that are 300 MB."""
    said = []

    async def attack() -> None:
        packed = grpc.Compression.Gzip
        said.append(await ask(gateway, HEALTH + "Check", bytes(150 * SIZE), compression=packed))

    await gateway.survives(attack)
    assert said[-1].startswith("RESOURCE_EXHAUSTED")
