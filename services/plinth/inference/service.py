"""One shard of a served model behind gRPC. `messages` translates, `EngineClient` carries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc

from plinth.engine.request import Finish, ScoresEvent, TokensEvent, Usage
from plinth.inference import messages
from plinth.inference.client import EngineClient
from plinth.inference.loading import LoadedModel, load_engine
from plinth.inference.rollouts import RolloutConsumer
from plinth.internal.v1 import inference_pb2, inference_pb2_grpc
from plinth.shared import tracing
from plinth.shared.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable
from plinth.shared.identity import current_principal
from plinth.shared.kinds import what_it_is
from plinth.shared.load import FirstTokens, Load
from plinth.shared.rollout_results import RolloutResults
from plinth.shared.rollouts import rollout_queue
from plinth.shared.rpc.server import GrpcService
from plinth.shared.stage import StageContext
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import counter, gauge, get_logger, histogram

_log = get_logger("plinth.inference")
MAX_SCORE_ITEMS = 256
_RUNNING = gauge("requests_running", "Sequences in the batch")
_WAITING = gauge("requests_waiting", "Sequences in the queue")
_KV = gauge("kv_cache_usage_ratio", "Share of KV blocks held by live sequences")
_TOKENS = counter("generated_tokens_total", "Tokens sampled")
_CACHED = counter("prefix_cache_hit_tokens_total", "Prompt tokens taken from the prefix cache")
_PROPOSED = counter("spec_proposed_tokens_total", "Draft tokens proposed")
_ACCEPTED = counter("spec_accepted_tokens_total", "Draft tokens accepted")
_STEPS = counter("engine_steps_total", "Steps of the engine that serves")
_SHARD = gauge("shard_info", "1: what this shard serves", ["model", "artifact"])
_QUEUE = histogram(
    "engine_first_token_seconds",
    "From arrival at the shard to its first token",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class InferenceFront(inference_pb2_grpc.InferenceServiceServicer):
    """A StageFront: loads one model artifact and serves it until drained."""

    stage = "inference"

    def __init__(
        self, context: StageContext, model: str, artifact: str, speculation: str, kv_bytes: int
    ) -> None:
        self._context, self._model, self._speculation = context, model, speculation
        self._artifact, self._kv_bytes = artifact, kv_bytes
        self._loaded: LoadedModel | None = None
        self._engine: EngineClient | None = None
        self._rollouts: RolloutConsumer | None = None
        self._sampling: asyncio.Task[None] | None = None
        # Items of `Score` in the engine: whole calls wait here, and leave its queue to others.
        self._scoring = asyncio.Semaphore(context.settings.engine.max_running)
        self._draining = False
        self._steps = 0  # as counted last
        self._first_tokens = FirstTokens(context.settings.scaling.over_s)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the stage's life -------------------------------------------------------------------

    def services(self) -> Sequence[GrpcService]:
        return [
            GrpcService(
                "plinth.internal.v1.InferenceService",
                lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(
                    self, server
                ),
            )
        ]

    async def start(self) -> None:
        """Load the weights (off the loop) and start the engine."""
        record = await asyncio.to_thread(self._context.store.get, self._artifact)
        if record.kind != "model":
            raise InvalidArgument(f"a model is wanted; {what_it_is(record, self._context.store)}")
        self._artifact = record.ref
        settings = self._context.settings.engine
        if self._kv_bytes:
            settings = settings.model_copy(update={"kv_cache_bytes": self._kv_bytes})
        store = self._context.store
        self._loaded = await asyncio.to_thread(
            lambda: load_engine(
                store.fetch(record),
                settings,
                speculation=self._speculation,
                draft_folder=store.fetch,
            )
        )
        self._engine = EngineClient(self._loaded.engine)
        self._engine.start()
        if settings.rollouts:
            self._rollouts = RolloutConsumer(
                self._context.replica_id,
                rollout_queue(self._context.redis),
                self._engine,
                RolloutResults(lambda: store.storage),
                device=settings.device,
                kv_bytes=settings.policy_kv_cache_bytes,
                idle_s=settings.policy_idle_s,
            )
            self._sampling = asyncio.create_task(self._rollouts.run())
        _SHARD.labels(self._model, self._artifact).set(1)
        _log.info("model.loaded", model=self._model, artifact=self._artifact)

    async def check(self) -> None:
        """Raise when the engine died or stands still."""
        self.engine.check()
        if self._sampling is not None and self._sampling.done() and not self._draining:
            raise Internal(f"the rollout consumer ended: {self._sampling.exception()}")
        load = self.engine.load
        _RUNNING.set(load.running)
        _WAITING.set(load.waiting)
        _KV.set(load.kv_usage)
        _STEPS.inc(load.steps - self._steps)
        self._steps = load.steps

    def announcement(self) -> dict[str, str]:
        """What routers need: the binding, the load and the model's context."""
        load = self.engine.load
        return {
            "bindings": json.dumps([self._binding()]),
            "kv": f"{load.kv_usage:.4f}",
            "running": str(max(load.running, self._calls - load.waiting)),
            "waiting": str(load.waiting),
            "rollouts": str(self._rollouts.running if self._rollouts else 0),
        }

    async def load(self) -> Load:
        """KV in use, requests that wait, time to first token: the one nearest to its limit."""
        targets, now = self._context.settings.scaling, self.engine.load
        return Load(
            max(
                now.kv_usage / targets.kv_usage,
                now.waiting / targets.waiting,
                self._first_tokens.median_s() / targets.first_token_s,
            )
        )

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; wait for what runs; whoever is left goes on at another shard."""
        self._draining = True
        if self._sampling is not None:  # what is being sampled goes back to the queue
            await cancel_and_wait(self._sampling)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        if self._engine is not None:
            await self._engine.stop()

    @property
    def engine(self) -> EngineClient:
        """The running engine; Unavailable before `start` is through."""
        if self._engine is None or self._loaded is None:
            raise Unavailable("the model is still loading", retry_after_s=1.0)
        return self._engine

    def _binding(self) -> dict[str, Any]:
        assert self._loaded is not None
        return {
            "model": self._model,
            "artifact": self._artifact,
            "weights_digest": self._loaded.weights_digest,
            "context_length": self._loaded.engine.limits.positions,
            "speculation": self._speculation,
            "kv_cache_bytes": self._kv_bytes,
        }

    # -- calls ------------------------------------------------------------------------------

    async def Generate(
        self,
        request: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Stream tokens; the first message carries the seed, the last the finish and usage."""
        engine = self.engine
        self._accept(request.binding)
        assert self._loaded is not None
        asked = messages.engine_request(
            request,
            tenant=current_principal().tenant,
            remaining_s=context.time_remaining(),
            eos_ids=self._loaded.config.eos_ids,
            positions=self._loaded.engine.limits.positions,
        )
        digest = self._loaded.weights_digest
        arrived, first = time.monotonic(), True
        with self._call():
            async for event in engine.stream(asked):
                assert isinstance(event, TokensEvent)
                if first and event.tokens:
                    took = time.monotonic() - arrived
                    _QUEUE.observe(took)
                    self._first_tokens.add(took)
                    tracing.event("first token")
                yield messages.response(event, digest, asked.sampling.seed if first else None)
                first = False
                _TOKENS.inc(len(event.tokens))
                if event.finish is not None:
                    self._count(event.usage)

    async def Score(
        self, request: inference_pb2.ScoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.ScoreResponse:
        """Score the items together; they share batches with everything else."""
        self._accept(request.binding)
        if not 1 <= len(request.items) <= MAX_SCORE_ITEMS:
            raise InvalidArgument(
                f"{len(request.items)} items, must be 1 to {MAX_SCORE_ITEMS}", field="items"
            )
        remaining = context.time_remaining()
        with self._call():
            tasks = [
                asyncio.create_task(self._score(item, request.binding, remaining))
                for item in request.items
            ]
            try:
                results = await asyncio.gather(*tasks)
            finally:  # one refused item ends the others too
                for task in tasks:
                    task.cancel()
        digest = self._binding()["weights_digest"]
        return inference_pb2.ScoreResponse(
            results=[inference_pb2.ScoreResult(logprobs=scores) for scores in results],
            weights_digest=digest,
        )

    async def GetShard(
        self, request: inference_pb2.GetShardRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.GetShardResponse:
        """Load and bindings."""
        engine, binding = self.engine, self._binding()
        load, (free, cached) = engine.load, engine.blocks
        return inference_pb2.GetShardResponse(
            shard_id=self._context.replica_id,
            bindings=[
                inference_pb2.Binding(model=self._model, weights_digest=binding["weights_digest"])
            ],
            running=load.running,
            waiting=load.waiting,
            kv_usage=load.kv_usage,
            steps=load.steps,
            context_length=binding["context_length"],
            blocks_total=self._loaded.engine.pool.total if self._loaded else 0,
            blocks_free=free,
            blocks_cached=cached,
        )

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Count a call, so that draining can wait for it."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def _accept(self, binding: inference_pb2.Binding) -> None:
        if self._draining:
            raise Unavailable("this shard is draining; ask another", reason="draining")
        if binding.model not in ("", self._model, self._artifact):
            raise NotFound(
                f"this shard serves {self._model!r}, not {binding.model!r}", field="binding.model"
            )

    async def _score(
        self,
        item: inference_pb2.ScoreItem,
        binding: inference_pb2.Binding,
        remaining: float | None,
    ) -> Sequence[float]:
        request = messages.score_request(item, binding, current_principal().tenant, remaining)
        async with self._scoring:
            async for event in self.engine.stream(request):
                assert isinstance(event, ScoresEvent)
                if event.finish is Finish.DEADLINE:
                    raise DeadlineExceeded("the deadline passed before the sequence was scored")
                return event.logprobs
        raise Unavailable("the engine ended before the sequence was scored")

    def _count(self, usage: Usage) -> None:
        _CACHED.inc(usage.cached)
        _PROPOSED.inc(usage.draft_proposed)
        _ACCEPTED.inc(usage.draft_accepted)


def build(
    context: StageContext,
    *,
    model: str,
    artifact: str,
    speculation: str = "",
    kv_cache_bytes: int = 0,
) -> InferenceFront:
    """A shard of deployment `model` that serves `artifact` (a store reference)."""
    return InferenceFront(context, model, artifact, speculation, kv_cache_bytes)
