"""Scripted stages behind a gateway: a byte tokenizer and shards whose every token is known.

The shard is strict where it matters: a resumed request must bring exactly the ids that were made
before, or it is refused. Run as a program, it is one shard in a process of its own, to be killed.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import sys
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from patience import PATIENCE_S
from plinth.cluster.ports import free_port
from plinth.gateway.keys.api_keys import KeyStore
from plinth.inference.messages import engine_request
from plinth.internal.v1 import inference_pb2, inference_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.connection import connect
from plinth.shared.errors import Internal, InvalidArgument, ResourceExhausted, Unavailable
from plinth.shared.identity import current_principal, current_request_id
from plinth.shared.registry import Registry
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.shared.tasks import cancel_and_wait
from plinth.tokenizer.detokenizer import Detokenizer, TokenTable
from plinth.v1 import sampling_pb2

TOKEN = "a cluster token for tests"
DIGEST = "sha256:" + "ab" * 32
EOS = 256
SCRIPT = "Größe, naïve café — 漢字 and 🙂🎉 emoji; the end of line one.\nUser: again? "
ANNOUNCE_S = 0.5


def script_ids(seed: int, sample: int, count: int, start: int = 0) -> list[int]:
    """What the scripted model makes at output positions start … start + count."""
    data = SCRIPT.encode()
    return [data[(seed + 7 * sample + at) % len(data)] for at in range(start, start + count)]


def script_text(seed: int, sample: int, count: int) -> str:
    return without_half(bytes(script_ids(seed, sample, count)))


def without_half(data: bytes) -> str:
    """The text of bytes that may end inside a character: up to that."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


BYTES = TokenTable({id_: bytes([id_]) for id_ in range(256)}, None, False, 257)


class ByteTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Ids 0 to 255 are bytes, 256 ends a turn and is spelled `<eos>`."""

    async def Encode(self, request: Any, context: Any) -> Any:
        parts = [text.encode().split(b"<eos>") for text in request.texts]
        if not request.parse_special:
            parts = [[text.encode()] for text in request.texts]
        made = []
        for first, *rest in parts:
            made.append(array("H"))  # a list of two million would take the processor from a gateway
            made[-1].extend(first)
            for part in rest:
                made[-1].extend((EOS, *part))
        special = [len(one) > 1 for one in parts]
        return tokenizer_pb2.EncodeResponse(
            sequences=[
                tokenizer_pb2.TokenIds(ids=_few(ids, request.max_ids), count=len(ids))
                for ids in made
            ],
            stop_token_ids=[EOS] if any(special) else [],
            special=special if request.parse_special else [],
        )

    async def Decode(self, request: Any, context: Any) -> Any:
        data = [bytes(s.ids) for s in request.sequences]
        if request.raw:
            return tokenizer_pb2.DecodeResponse(raw=data)
        return tokenizer_pb2.DecodeResponse(texts=map(without_half, data))

    async def ApplyChatTemplate(self, request: Any, context: Any) -> Any:
        text = "".join(f"<{m.role}>{m.content}\n" for m in request.messages) + "<assistant>"
        ids = text.encode()
        return tokenizer_pb2.ApplyChatTemplateResponse(
            ids=_few(ids, request.max_ids),
            stop_token_ids=[EOS],
            text="" if request.without_text else text,
            count=len(ids),
        )

    async def ApplyChatTemplates(self, request: Any, context: Any) -> Any:
        texts = [
            "".join(f"<{m.role}>{m.content}\n" for m in one.messages)
            + "<assistant>" * one.add_generation_prompt
            for one in request.conversations
        ]
        sequences = [tokenizer_pb2.TokenIds(ids=text.encode()) for text in texts]
        return tokenizer_pb2.ApplyChatTemplatesResponse(sequences=sequences, stop_token_ids=[EOS])

    async def DecodeStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        stream = Detokenizer(BYTES, skipped=())
        async for request in request_iterator:
            text, starts, ends = stream.add_located(request.ids)
            yield tokenizer_pb2.DecodeStreamResponse(text=text, starts=starts, ends=ends)


def _few(ids: Sequence[int], most: int) -> Sequence[int]:
    return () if most and len(ids) > most else ids


@dataclass(frozen=True)
class Said:
    """A whole answer: its text, and the log-probability of each of its bytes."""

    text: str
    logprobs: tuple[float, ...]

    @classmethod
    def evenly(cls, text: str, logprob: float) -> Said:
        return cls(text, (logprob,) * len(text.encode()))


@dataclass
class Shard(inference_pb2_grpc.InferenceServiceServicer):
    """Makes the script, one token a message, `delay_s` apart."""

    delay_s: float = 0.0
    full: bool = False
    draining: bool = False
    end_after: int = 0  # tokens until it ends by itself; 0: never
    die_after: int = 0  # tokens after which the process exits, as if killed
    digest: str = DIGEST  # of its weights
    positions: int = 4096  # of its context
    fails: bool = False  # before any token
    first_token_s: float = 0.0
    says: list[Said] = field(default_factory=list)  # by sample index, in place of the script
    tops: list[int] = field(default_factory=list)  # the alternatives, in place of A, B, …
    requests: list[Any] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)  # request id, tenant
    running: int = 0
    cancelled: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.seen.append((current_request_id(), current_principal().tenant))
        if self.full:
            raise ResourceExhausted("the queue is full", reason="QUEUE_FULL", retry_after_s=2.0)
        if self.draining:
            raise Unavailable("this shard is draining; ask another", reason="draining")
        if self.fails:
            raise Internal("the engine can't run these weights")
        await asyncio.sleep(self.first_token_s)
        self.running += 1
        try:
            async for message in self._generate(request):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.changed.set()

    async def _generate(self, request: Any) -> AsyncIterator[Any]:
        engine_request(
            request, tenant="", remaining_s=None, eos_ids=(EOS,), positions=self.positions
        )
        sampling = request.sampling
        ids = [id_ for span in request.input for id_ in span.tokens.ids]
        start = request.first_output_position
        made = script_ids(sampling.seed, sampling.sample_index, start)
        if start and ids[-start:] != made:
            raise InvalidArgument("what was resumed is not what was made")
        prompt = len(ids) - start
        if request.binding.weights_digest != self.digest:
            raise InvalidArgument("wrong weights")
        if self.says:
            async for message in self._say(self.says[sampling.sample_index], prompt, request):
                yield message
            return
        for position in range(start, start + sampling.max_tokens):
            if self.end_after and position >= self.end_after:
                yield self._last(sampling_pb2.FINISH_REASON_STOP, prompt, position)
                return
            if self.die_after and position - start >= self.die_after:
                os.kill(os.getpid(), 9)
            (id_,) = script_ids(sampling.seed, sampling.sample_index, 1, position)
            token = sampling_pb2.Token(id=id_, logprob=-0.5, raw_logprob=-0.25)
            for rank in range(sampling.top_logprobs):
                id_ = self.tops[rank] if rank < len(self.tops) else 65 + rank
                token.top.add(id=id_, logprob=-0.25 - rank)
            message = inference_pb2.GenerateResponse(tokens=[token], weights_digest=self.digest)
            if position == start:
                message.seed = sampling.seed
                message.usage.CopyFrom(_prompt_usage(prompt))
            yield message
            await asyncio.sleep(self.delay_s)
        yield self._last(sampling_pb2.FINISH_REASON_LENGTH, prompt, start + sampling.max_tokens)

    async def _say(self, said: Said, prompt: int, request: Any) -> AsyncIterator[Any]:
        made = list(zip(said.text.encode(), said.logprobs, strict=True))
        for id_, logprob in made[: request.sampling.max_tokens]:
            # The sampler's view, after temperature, is not the model's own.
            token = sampling_pb2.Token(id=id_, logprob=-9.0, raw_logprob=logprob)
            yield inference_pb2.GenerateResponse(tokens=[token], weights_digest=self.digest)
            await asyncio.sleep(self.delay_s)
        whole = len(made) <= request.sampling.max_tokens
        reason = sampling_pb2.FINISH_REASON_STOP if whole else sampling_pb2.FINISH_REASON_LENGTH
        yield self._last(reason, prompt, min(len(made), request.sampling.max_tokens))

    def _last(self, reason: int, prompt: int, made: int) -> Any:
        usage = _prompt_usage(prompt)
        usage.completion_tokens = made
        return inference_pb2.GenerateResponse(finish_reason=reason, usage=usage)


def _prompt_usage(prompt: int) -> sampling_pb2.Usage:
    return sampling_pb2.Usage(prompt_tokens=prompt, cached_tokens=prompt // 16 * 16)


def shard_service(shard: Shard) -> GrpcService:
    return GrpcService(
        "plinth.internal.v1.InferenceService",
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(shard, server),
        {"*": "inference"},
    )


def tokenizer_service(tokenizer: ByteTokenizer) -> GrpcService:
    return GrpcService(
        "plinth.internal.v1.TokenizerService",
        lambda server: tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(tokenizer, server),
        {"Train": "jobs", "*": "tokenize"},
    )


def bindings(
    model: str = "chat", context: int = 4096, artifact: str = "", digest: str = DIGEST
) -> dict[str, str]:
    held = {
        "model": model,
        "artifact": artifact or f"{model}@1",
        "weights_digest": digest,
        "context_length": context,
    }
    return {"bindings": json.dumps([held])}


class Replica:
    """One announced stage server in this process."""

    def __init__(
        self, settings: Settings, redis_url: str, stage: str, id: str, service: GrpcService
    ) -> None:
        self.stage, self.id = stage, id
        self._server = GrpcServer([service], stage=stage, settings=settings, token=TOKEN)
        self._redis = connect(redis_url)
        self._registry = Registry(self._redis)
        self._task: asyncio.Task[None] | None = None
        self.fields: dict[str, str] = {}

    async def start(self, fields: dict[str, str]) -> None:
        self.fields = fields
        self.address = f"127.0.0.1:{await self._server.start()}"
        await self._server.set_ready(True)
        await self._registry.announce(self.stage, self.id, self.address, fields)
        self._task = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        while True:
            with suppress(Unavailable):
                await self._registry.announce(self.stage, self.id, self.address, self.fields)
            await asyncio.sleep(ANNOUNCE_S)

    async def stop(self, *, withdraw: bool = True) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
            self._task = None
            if withdraw:
                await self._registry.withdraw(self.stage, self.id)
            await self._server.stop(0)
            await self._redis.aclose()


def gateway_settings(data_dir: Path, redis_url: str, **gateway: Any) -> Settings:
    return load_settings(
        data_dir=data_dir,
        redis_url=redis_url,
        cluster_token=TOKEN,
        gateway={"port": free_port(), "grpc_port": free_port(), "drain_s": 1, **gateway},
    )


@dataclass
class Stack:
    """A gateway in this process, a tokenizer, and as many shards as asked for."""

    settings: Settings
    redis_url: str
    key: str = ""
    shards: dict[str, Shard] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.gateway.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.settings.gateway.grpc_port}"

    def http(self, **headers: str) -> httpx.AsyncClient:
        """A REST client with the admin's key. Close it."""
        headers = {"authorization": f"Bearer {self.key}", **headers}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE_S)

    @property
    def shard(self) -> Shard:
        return next(iter(self.shards.values()))

    async def add_shard(self, id: str, shard: Shard, **binding: Any) -> Replica:
        replica = Replica(self.settings, self.redis_url, "inference", id, shard_service(shard))
        await replica.start(bindings(**{"digest": shard.digest, **binding}))
        self.shards[id], self.replicas[id] = shard, replica
        return replica

    @asynccontextmanager
    async def also_serving(self, model: str, **binding: Any) -> AsyncIterator[None]:
        """Its first shard under the name of a second model."""
        redis = connect(self.redis_url)
        registry, id = Registry(redis, ttl_s=PATIENCE_S), f"{model}-0"
        address = next(self.replicas[name].address for name in self.shards)
        try:
            await registry.announce("inference", id, address, bindings(model, **binding))
            yield
        finally:
            await registry.withdraw("inference", id)
            await redis.aclose()

    async def add_tokenizer(self, id: str) -> Replica:
        service = tokenizer_service(ByteTokenizer())
        replica = Replica(self.settings, self.redis_url, "tokenizer", id, service)
        await replica.start({})
        self.replicas[id] = replica
        return replica

    async def stop_replicas(self) -> None:
        for replica in self.replicas.values():
            await replica.stop()


@asynccontextmanager
async def running_stack(
    data_dir: Path,
    redis_url: str,
    *,
    shards: int = 1,
    first: Shard | None = None,
    **gateway: Any,
) -> AsyncIterator[Stack]:
    from plinth.gateway.__main__ import serve

    stack = Stack(gateway_settings(data_dir, redis_url, **gateway), redis_url)
    stop = asyncio.Event()
    async with AsyncExitStack() as ending:
        ending.push_async_callback(stack.stop_replicas)
        await stack.add_tokenizer("tokenizer-0")
        for index in range(shards):
            await stack.add_shard(f"shard-{index}", first if first and index == 0 else Shard())
        serving = asyncio.create_task(serve(stack.settings, stop))
        ending.push_async_callback(lambda: serving)
        ending.callback(stop.set)
        await answering(f"{stack.url}/readyz", serving)
        if stack.settings.gateway.auth == "keys":
            stack.key = await admin_key(stack.settings)
        yield stack


async def admin_key(settings: Settings) -> str:
    """The key that the platform's first gateway made; a gateway beside others makes none, so then
    one more is made, as an operator would, and kept where the first one is."""
    path = settings.first_key_file
    if not path.exists():
        assert settings.redis_url is not None
        redis = connect(settings.redis_url.get_secret_value())
        try:
            plain, _ = await KeyStore(redis).create("default", {"admin"})
        finally:
            await redis.aclose()
        path.write_text(plain)
    return path.read_text().strip()


async def answering(url: str, alive: asyncio.Task[Any] | None = None) -> None:
    """Waits until `url` answers 200."""
    async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE_S):
        while True:
            if alive is not None and alive.done():
                alive.result()
                raise AssertionError("the gateway ended")
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


async def until(condition: Any, timeout_s: float = PATIENCE_S) -> None:
    """Waits until `condition()` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def plinth(
    stack: Stack, *arguments: str, stdin: str = "", **environment: str
) -> tuple[int, str, str]:
    """`plinth …` as a person runs it against the gateway: (exit code, stdout, stderr)."""
    gateway = stack.settings.gateway
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from plinth.cli.main import app; app()",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "PLINTH_DATA_DIR": str(stack.settings.data_dir),
            "PLINTH_REDIS_URL": stack.redis_url,
            "PLINTH_GATEWAY__GRPC_PORT": str(gateway.grpc_port),
            **environment,
        },
    )
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def _main(redis_url: str, id: str, delay_s: float) -> None:
    settings = load_settings(cluster_token=TOKEN)
    replica = Replica(settings, redis_url, "inference", id, shard_service(Shard(delay_s=delay_s)))
    await replica.start(bindings())
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
