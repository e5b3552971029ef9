"""A coordinator's replica without its server, for whole runs against scripted stages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from patience import PATIENCE_S
from plinth.coordinator import service
from plinth.coordinator.run_service import RunServicer
from plinth.shared.api.paging import Pages
from plinth.shared.identity import SYSTEM, call_scope
from plinth.v1 import runs_pb2 as pb
from scripted_stages import TOKEN, Caller, World

PIPELINE = """
name: q
steps:
  corpus: {kind: data, builtin: stdlib}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 300}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  pretrain:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 1, output: mini,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}}
  exam:
    {kind: evaluate, model: $pretrain, corpus: $corpus, prompts: [hello, abc], max_tokens: 4,
     require: {bits_per_byte_at_most: 2}}
  release: {kind: publish, model: $pretrain, after: [exam]}
  online: {kind: serve, model: $release, name: mini}
"""

# One step of each kind, named after it.
EXAMPLES = """
name: all
steps:
  data: {kind: data, builtin: stdlib}
  tokenizer: {kind: tokenizer, corpus: c, vocab_size: 300}
  train:
    kind: train
    objective: ppo
    dataset: d
    init_from: m
    steps: 2
    rewards: {short: {rule: {kind: max_words, n: 9}}}
  evaluate: {kind: evaluate, model: m, corpus: c}
  compare: {kind: compare, dataset: d, judge: j, baseline: m, candidate: m}
  preferences: {kind: preferences, collection: mine}
  prompts:
    kind: prompts
    topics: [a, b]
    constraints: [{name: few, ask: Few words., checks: [{kind: max_words, n: 20}]}]
    held_out: 1
  sample: {kind: sample, model: m, prompts: p}
  verify: {kind: verify, model: m, baseline: m, prompts: p}
  publish: {kind: publish, model: m}
  serve: {kind: serve, model: m, name: chat}
  canary: {kind: canary, model: m, name: chat}
"""


class Coordinator:
    """A replica without its server: the servicer is called directly."""

    def __init__(self, world: World, name: str) -> None:
        self._context = world.context(name)
        self.front = service.build(self._context)
        self.rpc: Any = RunServicer(
            self.front._records, self.front._feed, self.front._tools, Pages(TOKEN)
        )

    async def start(self) -> None:
        await self.front.start()

    async def stop(self) -> None:
        await self.front.drain(PATIENCE_S)
        await self.front.check()
        await self._context.clients.close()
        await self._context.redis.aclose()

    async def leads(self) -> None:
        await until(lambda: self.front.announcement()["leader"] == "1")

    async def submit(self, run_id: str, text: str = PIPELINE, **overrides: str) -> pb.Run:
        spec = pb.RunSpec(
            pipeline_yaml=text,
            overrides={k.replace("__", "."): v for k, v in overrides.items()},
        )
        request = pb.CreateRunRequest(run_id=run_id, run=pb.Run(spec=spec))
        with call_scope(principal=SYSTEM):
            return (await self.rpc.CreateRun(request, None)).run

    async def get(self, run_id: str) -> pb.Run:
        return (await self.rpc.GetRun(pb.GetRunRequest(name=f"runs/{run_id}"), None)).run

    async def pause(self, run_id: str) -> pb.Run:
        with call_scope(principal=SYSTEM):
            return (await self.rpc.PauseRun(pb.PauseRunRequest(name=f"runs/{run_id}"), None)).run

    async def resume(self, run_id: str) -> pb.Run:
        with call_scope(principal=SYSTEM):
            return (await self.rpc.ResumeRun(pb.ResumeRunRequest(name=f"runs/{run_id}"), None)).run

    async def cancel(self, run_id: str) -> pb.Run:
        with call_scope(principal=SYSTEM):
            return (await self.rpc.CancelRun(pb.CancelRunRequest(name=f"runs/{run_id}"), None)).run

    async def fork(self, request: pb.ForkRunRequest) -> pb.Run:
        with call_scope(principal=SYSTEM):
            return (await self.rpc.ForkRun(request, None)).run

    async def watch(self, run_id: str) -> list[pb.Run]:
        request = pb.WatchRunRequest(name=f"runs/{run_id}")
        watched = self.rpc.WatchRun(request, Caller())
        return [message.run async for message in watched if message.HasField("run")]

    async def end(self, run_id: str) -> pb.Run:
        return (await asyncio.wait_for(self.watch(run_id), PATIENCE_S))[-1]

    async def reached(self, run_id: str, step: str, state: Any) -> pb.Run:
        async def look() -> pb.Run | None:
            run = await self.get(run_id)
            return run if steps(run)[step].state == state else None

        return await until(look)


def steps(run: pb.Run) -> dict[str, pb.Step]:
    return {step.step_id: step for step in run.status.steps}


def states(run: pb.Run) -> list[str]:
    return [pb.StepState.Name(step.state).removeprefix("STEP_STATE_") for step in run.status.steps]


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)
