"""The tokens of one answer, over as many shards as it takes.

When a shard dies or drains in mid-stream, the next one gets the prompt with the ids that were
passed on, the same seed, and the output position at which to go on. Since noise is keyed on
(seed, sample, position), the client sees neither a gap nor a repeat. Nothing is ever sent twice:
before the first token a request starts anew, after it only by resuming. A request under which two
shards died is given to no third. A shard that stopped because nobody read what it made is asked for
the rest in the same way, once somebody has. Knows ids, no text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import grpc

from plinth.gateway import metrics
from plinth.gateway.generation.catalogue import STAGE, Catalogue, ServedModel, held_as
from plinth.gateway.generation.retry_budget import RetryBudget
from plinth.internal.v1 import inference_pb2, inference_pb2_grpc
from plinth.shared import tracing
from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.identity import Principal, part_id
from plinth.shared.registry import Replica
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.slow_readers import SLOW_READER
from plinth.shared.rpc.status import raised_by_call
from plinth.shared.tasks import next_turn
from plinth.shared.telemetry import get_logger
from plinth.v1 import sampling_pb2

Message = inference_pb2.GenerateResponse
POLL_S = 0.2  # for a shard to come (back)
LARGE = 16_384  # ids


class Replaced(Unavailable):
    """Before an answer's first token its weights went, and others came under the same name: whoever
    asks for that name, rather than for these weights, asks anew."""


_CANCELLED = sampling_pb2.FINISH_REASON_CANCELLED
_log = get_logger("plinth.gateway")


@dataclass(frozen=True)
class SampleRequest:
    """One sample of one prompt. `sampling` has its seed and max_tokens set.

    deadline: on time.monotonic()'s clock. impatient: before the first token nobody is waited for,
    since another revision can answer instead. deaths: shards that died under the client's request,
    shared by all its requests.
    """

    request_id: str
    model: ServedModel
    prompt_ids: Sequence[int]
    sampling: sampling_pb2.SamplingParams
    principal: Principal
    deadline: float
    impatient: bool = False
    deaths: set[str] = field(default_factory=set)

    def message(self, made: list[int], attempt: int, held_as: str) -> inference_pb2.GenerateRequest:
        """What a shard, which calls the model `held_as`, is asked for once `made` ids have been
        passed on."""
        sampling = sampling_pb2.SamplingParams()
        sampling.CopyFrom(self.sampling)
        sampling.max_tokens = self.sampling.max_tokens - len(made)
        message = inference_pb2.GenerateRequest(
            request_id=part_id(self.request_id, self.sampling.sample_index, attempt),
            binding=inference_pb2.Binding(model=held_as, weights_digest=self.model.weights_digest),
            sampling=sampling,
            first_output_position=len(made),
        )
        # In its place: a message that is handed over is written and read again, a long one for
        # three milliseconds.
        ids = message.input.add().tokens.ids
        ids.extend(self.prompt_ids)
        ids.extend(made)
        return message


class Shards:
    """Where answers are made: finds shards and goes on at another when one is lost."""

    def __init__(
        self, clients: StageClients, catalogue: Catalogue, patience_s: float, resume_s: float
    ) -> None:
        """patience_s: how long to wait for a shard before the first token; resume_s: after it."""
        self._clients = clients
        self._catalogue = catalogue
        self._patience_s = patience_s
        self._resume_s = resume_s
        # A long prompt takes a millisecond or two to be written: each of a request's answers asks
        # in a turn of the loop of its own.
        self._writing = asyncio.Lock()

    async def tokens(self, request: SampleRequest) -> AsyncGenerator[Message, None]:
        """Messages of the shards in order; the last one, and no other, has a finish reason.

        Closing the generator cancels the shard's call at once. Raises the shard's error where
        another shard would answer the same, Unavailable when none came in time, and Replaced when
        none will come.
        """
        made: list[int] = []
        patience_s = 0.0 if request.impatient else self._patience_s
        budget = RetryBudget(
            request.request_id, patience_s, self._resume_s, request.deadline, request.deaths
        )
        while True:
            if len(made) >= request.sampling.max_tokens:  # lost between last token and its finish
                yield inference_pb2.GenerateResponse(
                    finish_reason=sampling_pb2.FINISH_REASON_LENGTH,
                    weights_digest=request.model.weights_digest,
                )
                return
            replica = await self._find(request, budget)
            if len(request.prompt_ids) > LARGE:
                async with self._writing:
                    await next_turn()
            channel = self._clients.channel(replica, request.principal)
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                request.message(
                    made, budget.attempts, held_as(replica, request.model) or request.model.name
                ),
                timeout=budget.left_s(),
            )
            behind = False
            try:
                # Closed, since a call and what reads it hold each other.
                reading = cast("AsyncGenerator[Message, None]", call.__aiter__())
                async with aclosing(reading) as messages:
                    async for message in messages:
                        if message.finish_reason == _CANCELLED:
                            behind = message.reader_behind
                            break  # not by us: the shard drains, or waits for us no longer
                        made.extend(token.id for token in message.tokens)
                        budget.progress(len(message.tokens))
                        yield message
                        if message.finish_reason:
                            return
                if not behind:
                    budget.lost(replica, Unavailable("the shard ended its stream early"))
            except PlinthError as error:
                behind = self._reader_was_behind(replica, error, budget, started=bool(made))
            finally:
                call.cancel()
            if behind:  # whatever was sent has been read by now, so there is room for more
                metrics.PAUSED.labels(request.model.name).inc()
                budget.again()
                continue
            if made:
                metrics.RESUMED.labels(request.model.name).inc()
            tracing.event("shard lost", shard=replica.id, position=len(made))
            _log.warning(
                "shard lost; the answer goes on at another",
                shard=replica.id,
                model=request.model.name,
                position=len(made),
                reason=str(budget.cause),
            )

    def _reader_was_behind(
        self, replica: Replica, error: PlinthError, budget: RetryBudget, *, started: bool
    ) -> bool:
        """Whether the call ended for that; if not, it is charged to the budget, which raises
        unless another shard may do better."""
        raised = raised_by_call(error)
        if raised is None:
            raise error  # the budget's own, or the call was not made
        if error.reason == SLOW_READER:
            return True
        if raised.code() is grpc.StatusCode.UNAVAILABLE:
            self._clients.refused(replica)
        budget.failed(replica, error, raised, started=started)
        return False

    async def _find(self, request: SampleRequest, budget: RetryBudget) -> Replica:
        """A shard of these weights; waits for one as long as the budget allows."""

        def fits(replica: Replica) -> bool:
            return held_as(replica, request.model) is not None

        while True:
            budget.check_deaths()
            try:
                return await self._clients.pick(STAGE, fits=fits, exclude=budget.avoided())
            except Unavailable as error:
                # An impatient one has somewhere else to go, and tells of the want.
                new = not (budget.spoke or request.impatient)
                if new and await self._catalogue.replaced(request.model):
                    raise Replaced(
                        f"{request.model.artifact} is served no more, another revision of"
                        f" {request.model.name!r} is",
                        reason="REVISION_REPLACED",
                        retry_after_s=1.0,
                    ) from error
                budget.check(error)
            await asyncio.sleep(POLL_S)
