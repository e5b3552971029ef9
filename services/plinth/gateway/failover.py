"""The tokens of one answer, over as many shards as it takes.

When a shard dies or drains in mid-stream, the next one gets the prompt with the ids that were
passed on, the same seed, and the output position at which to go on. Since noise is keyed on
(seed, sample, position), the client sees neither a gap nor a repeat. Nothing is ever sent twice:
before the first token a request starts anew, after it only by resuming. Knows ids, no text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc

from plinth.gateway import metrics
from plinth.gateway.catalogue import STAGE, Catalogue, ServedModel, held_as
from plinth.shared import tracing
from plinth.shared.errors import (
    DeadlineExceeded,
    NotFound,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.identity import Principal
from plinth.shared.registry import Replica
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.status import from_rpc_error
from plinth.shared.telemetry import get_logger
from plinth.v1 import common_pb2, inference_pb2, inference_pb2_grpc

AVOID_S = 1.0  # a shard that just failed this answer
POLL_S = 0.2  # for a shard to come (back)
MAX_LOSSES = 8  # shards lost by one answer, refused connections not counted
MAX_LOSSES_WITHOUT_TOKEN = 4  # so that a request that kills shards doesn't kill them all


class Replaced(Unavailable):
    """Before an answer's first token its weights went, and others came under the same name: whoever
    asks for that name, rather than for these weights, asks anew."""


_CANCELLED = common_pb2.FINISH_REASON_CANCELLED
_log = get_logger("plinth.gateway")


@dataclass(frozen=True)
class Order:
    """One sample of one prompt. `sampling` has its seed and max_tokens set.

    deadline: on time.monotonic()'s clock. impatient: before the first token nobody is waited for,
    since another revision can answer instead.
    """

    request_id: str
    model: ServedModel
    prompt_ids: tuple[int, ...]
    sampling: common_pb2.SamplingParams
    principal: Principal
    deadline: float
    impatient: bool = False

    def request(self, made: list[int], attempt: int, held_as: str) -> inference_pb2.GenerateRequest:
        """What a shard, which calls the model `held_as`, is asked for once `made` ids have been
        passed on."""
        sampling = common_pb2.SamplingParams()
        sampling.CopyFrom(self.sampling)
        sampling.max_tokens = self.sampling.max_tokens - len(made)
        sampling.first_output_position = self.sampling.first_output_position + len(made)
        tokens = inference_pb2.TokenSpan(ids=[*self.prompt_ids, *made])
        return inference_pb2.GenerateRequest(
            request_id=f"{self.request_id}.{self.sampling.sample_index}.{attempt}",
            binding=common_pb2.Binding(model=held_as, weights_digest=self.model.weights_digest),
            input=[inference_pb2.Span(tokens=tokens)],
            sampling=sampling,
        )


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

    async def tokens(self, order: Order) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Messages of the shards in order; the last one, and no other, has a finish reason.

        Closing the generator cancels the shard's call at once. Raises the shard's error where
        another shard would answer the same, Unavailable when none came in time, and Replaced when
        none will come.
        """
        made: list[int] = []
        patience_s = 0.0 if order.impatient else self._patience_s
        search = _Search(patience_s, self._resume_s, order.deadline)
        while True:
            if len(made) >= order.sampling.max_tokens:  # lost between last token and its finish
                yield inference_pb2.GenerateResponse(
                    finish_reason=common_pb2.FINISH_REASON_LENGTH,
                    weights_digest=order.model.weights_digest,
                )
                return
            replica = await self._find(order, search)
            channel = self._clients.channel(replica, order.principal)
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                order.request(
                    made, search.attempts, held_as(replica, order.model) or order.model.name
                ),
                timeout=search.left_s(),
            )
            try:
                async for message in call:
                    if message.finish_reason == _CANCELLED:
                        break  # not by us: the shard drains
                    made.extend(token.id for token in message.tokens)
                    search.progress(len(message.tokens))
                    yield message
                    if message.finish_reason:
                        return
                search.lost(replica, Unavailable("the shard ended its stream early"))
            except grpc.aio.AioRpcError as error:
                self._note(replica, error)
                search.failed(replica, error, started=bool(made))
            finally:
                call.cancel()
            if made:
                metrics.RESUMED.labels(order.model.name).inc()
            tracing.event("shard lost", shard=replica.id, position=len(made))
            _log.warning(
                "shard lost; the answer goes on at another",
                shard=replica.id,
                model=order.model.name,
                position=len(made),
                reason=str(search.cause),
            )

    def _note(self, replica: Replica, error: grpc.aio.AioRpcError) -> None:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self._clients.refused(replica)

    async def _find(self, order: Order, search: _Search) -> Replica:
        """A shard of these weights; waits for one as long as the search has patience."""

        def fits(replica: Replica) -> bool:
            return held_as(replica, order.model) is not None

        while True:
            try:
                return await self._clients.pick(STAGE, fits=fits, exclude=search.avoided())
            except Unavailable as error:
                # An impatient one has somewhere else to go, and tells of the want.
                new = not (search.spoke or order.impatient)
                if new and await self._catalogue.replaced(order.model):
                    raise Replaced(
                        f"{order.model.artifact} is served no more, another revision of"
                        f" {order.model.name!r} is",
                        reason="REVISION_REPLACED",
                        retry_after_s=1.0,
                    ) from error
                search.check(error)
            await asyncio.sleep(POLL_S)


class _Search:
    """How much more is tried for one answer: patience, deadline, bounded losses."""

    def __init__(self, patience_s: float, resume_s: float, deadline: float) -> None:
        self._patience_s = patience_s
        self._resume_s = resume_s
        self._deadline = deadline
        self._give_up = time.monotonic() + patience_s
        self._avoid: dict[str, float] = {}
        self._full: set[str] = set()
        self._losses = 0
        self._idle_losses = 0
        self.spoke = False  # whether any message came
        self.attempts = 0
        self.cause: PlinthError | None = None

    def left_s(self) -> float:
        """Seconds until the deadline; DeadlineExceeded when there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the answer ran out of its time", reason="DEADLINE")
        return left

    def avoided(self) -> set[str]:
        """Replica ids not to take now."""
        now = time.monotonic()
        self._avoid = {key: until for key, until in self._avoid.items() if until > now}
        return self._full | set(self._avoid)

    def progress(self, tokens: int) -> None:
        """A message arrived."""
        self.spoke = True
        if tokens:
            self._idle_losses = 0
            self._patience_s = self._resume_s
            self._give_up = time.monotonic() + self._patience_s

    def check(self, nobody: Unavailable) -> None:
        """Called while no shard can be had. Raises when it is time to give up."""
        self.left_s()
        if isinstance(self.cause, ResourceExhausted) and self._full:
            raise self.cause  # all that could answer are full
        if time.monotonic() >= self._give_up:
            raise Unavailable(
                f"no shard could take the request within {self._patience_s:g} s: {nobody.message}",
                reason="NO_SHARD",
                retry_after_s=5.0,
            ) from self.cause

    def failed(self, replica: Replica, error: grpc.aio.AioRpcError, *, started: bool) -> None:
        """A call ended in an error. Raises unless another shard may do better.

        A shard that was not reached, or that says it drains, was not lost under the request.
        """
        self.left_s()
        cause = from_rpc_error(error)
        if isinstance(cause, ResourceExhausted):
            if started:  # a resumed answer waits for room
                self._avoid_for_a_moment(replica, cause)
            else:
                self._full.add(replica.id)
                self.cause = cause
                self.attempts += 1
            self._raise_when_out_of_patience(cause)
        elif _never_reached(error) or cause.reason.upper() == "DRAINING":
            self._avoid_for_a_moment(replica, cause)
            self._raise_when_out_of_patience(cause)
        elif _is_loss(error) or isinstance(cause, NotFound):
            self.lost(replica, cause)
        else:
            raise cause from error

    def lost(self, replica: Replica, cause: PlinthError) -> None:
        """A shard was lost after it had got the request. Raises after too many."""
        self._losses += 1
        self._idle_losses += 1
        self._avoid_for_a_moment(replica, cause)
        if self._losses > MAX_LOSSES or self._idle_losses > MAX_LOSSES_WITHOUT_TOKEN:
            raise Unavailable(
                f"{self._losses} shards were lost under this request; the last: {cause.message}",
                reason="SHARDS_LOST",
                retry_after_s=5.0,
            ) from cause

    def _avoid_for_a_moment(self, replica: Replica, cause: PlinthError) -> None:
        self._avoid[replica.id] = time.monotonic() + AVOID_S
        self.cause = cause
        self.attempts += 1

    def _raise_when_out_of_patience(self, cause: PlinthError) -> None:
        if time.monotonic() >= self._give_up:
            raise cause


def _never_reached(error: grpc.aio.AioRpcError) -> bool:
    """Refused at connection: the request never met the shard."""
    details = (error.details() or "").lower()
    return error.code() is grpc.StatusCode.UNAVAILABLE and (
        "failed to connect" in details or "connection refused" in details
    )


def _is_loss(error: grpc.aio.AioRpcError) -> bool:
    """The shard died, drains or cancelled: not the request's fault."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return True
    broken = ("RST_STREAM", "Stream removed", "Connection reset", "GOAWAY")
    return code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and any(
        word in details for word in broken
    )
