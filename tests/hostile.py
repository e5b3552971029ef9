"""What a hostile client costs: a gateway in a process of its own that measures itself.

    async with watched_gateway(tmp_path, redis_url) as gateway:
        cost = await gateway.cost(attack)  # () -> Awaitable, run beside a neighbour's stream
        cost.check()

The loop is measured in processor time of its own thread between two turns, so that what else runs
on the machine doesn't count; memory is the peak of the resident set, over what it was before. Run
as a program, it is that gateway.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway_stages import (
    TOKEN,
    Replica,
    Shard,
    Stack,
    admin_key,
    answering,
    gateway_settings,
    script_text,
    until,
)
from patience import PATIENCE_S
from plinth.shared.rpc.server import GrpcService
from plinth.shared.settings import load_settings
from plinth.v1 import preferences_pb2, preferences_pb2_grpc

MAX_LOOP_S = 0.020  # of the loop, at a time
MAX_MEMORY_BYTES = 20_000_000
LONG = "long"  # a model of a long context, whose shard doesn't dawdle: nobody but attackers use it
LONG_CONTEXT = 300_000
NEIGHBOUR_TOKENS = 4000  # more than an attack lasts
NEIGHBOUR_SEED = 5


@dataclass(frozen=True)
class Cost:
    """loop_s: the longest turn of the gateway's loop, in seconds of its processor time.
    blocked_s: the same by the clock, which other processes lengthen. memory_bytes: growth of the
    resident set at its peak. neighbour_tokens: what a stream beside it got meanwhile."""

    loop_s: float
    blocked_s: float
    memory_bytes: int
    neighbour_tokens: int

    def check(self) -> None:
        """AssertionError unless the attack was harmless."""
        assert self.loop_s <= MAX_LOOP_S, self
        assert self.memory_bytes <= MAX_MEMORY_BYTES, self
        assert self.neighbour_tokens > 0, self


@dataclass
class WatchedGateway:
    """A gateway that answers on `stack.url` and `stack.grpc_address`."""

    stack: Stack
    process: asyncio.subprocess.Process

    async def survives(self, attack: Callable[[], Awaitable[Any]]) -> None:
        """AssertionError unless `attack` is harmless. It is run three times at the most: what
        others do on the machine can make one run dearer, and none cheaper."""
        for _ in range(2):
            cost = await self.cost(attack)
            if cost.loop_s <= MAX_LOOP_S and cost.memory_bytes <= MAX_MEMORY_BYTES:
                break
        else:
            cost = await self.cost(attack)
        cost.check()

    async def cost(self, attack: Callable[[], Awaitable[Any]]) -> Cost:
        """Runs `attack` beside a neighbour's stream, which must go on unharmed."""
        neighbour = _Neighbour(self.stack)
        reading = asyncio.create_task(neighbour.read())
        try:
            await until(lambda: neighbour.tokens > 2 or reading.done())
            await self._ask("begin")
            before = neighbour.tokens
            await asyncio.wait_for(attack(), PATIENCE_S)
            # A stream that stands still fails here, however long an attack took.
            await until(lambda: neighbour.tokens > before + 2 or reading.done())
            seen = neighbour.tokens - before
            measured = json.loads(await self._ask("end"))
            if reading.done():
                reading.result()  # raises what harmed it
                raise AssertionError("the neighbour's stream ended before the attack did")
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        return Cost(**measured, neighbour_tokens=seen)

    async def _ask(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n".encode())
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        assert line, "the gateway died"
        return line.decode()


class _Neighbour:
    """Somebody else's stream, whose every character is known."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.tokens = 0

    async def read(self) -> None:
        body = {
            "model": "chat",
            "prompt": "neighbour",
            "max_tokens": NEIGHBOUR_TOKENS,
            "seed": NEIGHBOUR_SEED,
            "stream": True,
        }
        due = script_text(NEIGHBOUR_SEED, 0, NEIGHBOUR_TOKENS)
        text = ""
        headers = {"authorization": f"Bearer {self._stack.key}"}
        async with (
            httpx.AsyncClient(timeout=PATIENCE_S) as client,
            client.stream(
                "POST", f"{self._stack.url}/v1/completions", json=body, headers=headers
            ) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += "".join(choice["text"] for choice in choices)
                self.tokens += 1
                assert due.startswith(text), "the neighbour got something else"


class Coordinator(preferences_pb2_grpc.PreferenceServiceServicer):
    """Takes tasks."""

    async def BatchCreatePreferenceTasks(self, request: Any, context: Any) -> Any:
        return preferences_pb2.BatchCreatePreferenceTasksResponse()


def coordinator_service() -> GrpcService:
    return GrpcService(
        "plinth.v1.PreferenceService",
        lambda server: preferences_pb2_grpc.add_PreferenceServiceServicer_to_server(
            Coordinator(), server
        ),
        {"*": "preferences"},
    )


@asynccontextmanager
async def watched_gateway(
    data_dir: Path, redis_url: str, *, shard: Shard | None = None, **gateway: Any
) -> AsyncIterator[WatchedGateway]:
    """Scripted stages in this process, the gateway in another. gateway: its settings."""
    settings = gateway_settings(data_dir, redis_url, **gateway)
    stack = Stack(settings, redis_url)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(stack.stop_replicas)
        await stack.add_tokenizer("tokenizer-0")
        await stack.add_shard("shard-0", shard or Shard(delay_s=0.01))
        patient = Shard(positions=LONG_CONTEXT)
        await stack.add_shard("shard-1", patient, model=LONG, context=LONG_CONTEXT)
        tasks = Replica(settings, redis_url, "coordinator", "coordinator-0", coordinator_service())
        await tasks.start({})
        stack.replicas[tasks.id] = tasks
        given = {
            "data_dir": str(data_dir),
            "redis_url": redis_url,
            "cluster_token": TOKEN,
            "gateway": settings.gateway.model_dump(mode="json"),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            json.dumps(given),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ending.push_async_callback(process.wait)
        ending.callback(process.kill)
        await answering(f"{stack.url}/readyz")
        stack.key = await admin_key(settings)
        yield WatchedGateway(stack, process)


class _Watch:
    """Measures the loop that it runs on."""

    def __init__(self) -> None:
        self._loop_s = self._blocked_s = 0.0
        self._memory = 0

    async def run(self) -> None:
        while True:
            used, now = time.thread_time(), time.monotonic()
            await asyncio.sleep(0.0005)  # of a loop that is busy: until its next turn
            self._loop_s = max(self._loop_s, time.thread_time() - used)
            self._blocked_s = max(self._blocked_s, time.monotonic() - now)

    async def answer(self) -> None:
        """Words on standard input: begin, end."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            if line == b"begin\n":
                self._memory = _new_peak_bytes()
                self._loop_s = self._blocked_s = 0.0
                print("ok", flush=True)
            else:
                found = {
                    "loop_s": self._loop_s,
                    "blocked_s": self._blocked_s,
                    "memory_bytes": _peak_bytes() - self._memory,
                }
                print(json.dumps(found), flush=True)


def _new_peak_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or an attack would be free with what the last one had
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    return _peak_bytes()


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM: is this Linux?")


async def _main(given: dict[str, Any]) -> None:
    from plinth.gateway.__main__ import serve
    from plinth.shared.telemetry import configure_logging

    settings = load_settings(**given, log_level="error")
    configure_logging(settings, "gateway")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    watch = _Watch()
    measuring = [asyncio.create_task(watch.run()), asyncio.create_task(watch.answer())]
    await serve(settings, stop, alone=True)
    for task in measuring:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
