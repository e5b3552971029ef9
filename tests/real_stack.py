"""The platform as a user has it: real stages, the real model, both APIs, and ways to hurt it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from plinth.cli.gateway_access import api_key
from plinth.cli.run_client import RunClient
from plinth.cluster import processes
from plinth.cluster.layout import StackPlan
from plinth.cluster.serve_model import serve_model
from plinth.cluster.stack import Stack, connect_clients
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Replica
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore

PATIENCE_S = 180.0
# A small model on little text: the point is what happens to the job, not what it learns.
PIPELINE = """
name: victim
steps:
  corpus: {kind: data, builtin: stdlib, max_bytes: 400_000, validation_fraction: 0.05}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 320}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  train:
    kind: train
    objective: clm
    dataset: $dataset
    model: {family: llama, layers: 1, hidden: 32, heads: 2, context: 64, tie_embeddings: true}
    batch_size: 4
    steps: 2000
    checkpoint_every: 100
    learning_rate: 1e-3
"""


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """What `condition` gives, once it gives something."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.1)
    return found


@dataclass
class RealStack:
    """A stack that is up, its key and its model."""

    stack: Stack
    key: str
    model: str
    up_s: float

    @classmethod
    def up(cls, data: Path, shards: int, **changes: Any) -> RealStack:
        """SmolLM2 on so many shards; with none, a stack that serves nothing yet."""
        settings = load_settings(data_dir=data, gateway__port=0, gateway__grpc_port=0, **changes)
        began = time.monotonic()
        stack = Stack.up(settings, plan=StackPlan())
        up_s = time.monotonic() - began
        if not shards:
            return cls(stack, api_key(settings), "", up_s)
        wanted = serve_model(settings, "default")
        wanted.shards = shards
        DeploymentRecords(ArtifactStore(settings.store())).put(wanted)
        made = cls(stack, api_key(settings), wanted.name, up_s)
        until(lambda: len(made.replicas("inference")) == shards, "both shards")
        return made

    def down(self) -> None:
        self.stack.down()

    # -- its APIs ---------------------------------------------------------------------------

    @property
    def rest(self) -> str:
        state = self.stack.state()
        assert state is not None
        return f"http://{state.gateway_host}:{state.gateway_port}"

    @property
    def grpc(self) -> str:
        state = self.stack.state()
        assert state is not None
        return f"{state.gateway_host}:{state.gateway_grpc_port}"

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=self.key, base_url=f"{self.rest}/v1", max_retries=0)

    def runs(self) -> RunClient:
        return RunClient(self.grpc, self.key)

    # -- its parts --------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        state = self.stack.state()
        return processes.of_stack(self.stack.layout.stack_id, state.sessions if state else [])

    def titled(self, title: str) -> list[psutil.Process]:
        """Processes whose title begins so: Ray names its processes."""
        found = []
        for process in self.processes():
            try:
                if title in process.cmdline()[0]:
                    found.append(process)
            except (psutil.NoSuchProcess, IndexError):
                continue
        return found

    def component(self, name: str) -> psutil.Process:
        state = self.stack.state()
        assert state is not None
        return psutil.Process(state.components[name].pid)

    def replicas(self, stage: str) -> list[Replica]:
        async def ask() -> list[Replica]:
            redis, _, registry, clients = connect_clients(self.stack.settings)
            try:
                return await registry.replicas(stage)
            finally:
                await clients.close()
                await redis.aclose()

        return asyncio.run(ask())

    def kill(self, victim: str) -> None:
        """-9 to one process of this kind."""
        if victim in ("gateway", "redis"):
            process = self.component(victim)
        else:
            process = until(lambda: self.titled(victim), f"a {victim}", 60)[0]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
