"""How long one answer looks for shards, and when it has cost too many of them."""

from __future__ import annotations

import time

import grpc

from plinth.gateway import metrics
from plinth.shared.errors import (
    DeadlineExceeded,
    Internal,
    NotFound,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.registry import Replica
from plinth.shared.rpc.status import said
from plinth.shared.telemetry import get_logger

AVOID_S = 1.0  # a shard that just failed this answer
MAX_LOSSES = 8  # shards lost by one answer, refused connections not counted
MAX_LOSSES_WITHOUT_TOKEN = 4  # so that a shard that answers nothing is not asked for ever
MAX_DEATHS = 2  # so that a request that kills shards doesn't kill them all
SHARDS_DIED = "SHARDS_DIED"  # the reason of the error
_log = get_logger("plinth.gateway")


class RetryBudget:
    """How much more is tried for one answer: patience, deadline, bounded losses."""

    def __init__(
        self,
        request_id: str,
        patience_s: float,
        resume_s: float,
        deadline: float,
        deaths: set[str],
    ) -> None:
        """request_id: what an operator is told. deaths: shards that died under the client's
        request, whichever of its answers they made. The times are `Shards`' and
        `SampleRequest`'s."""
        self._request_id = request_id
        self._deaths = deaths
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

    def again(self) -> None:
        """The answer goes on after a pause that was its reader's."""
        self.left_s()
        self.attempts += 1
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

    def failed(
        self, replica: Replica, cause: PlinthError, raised: grpc.RpcError, *, started: bool
    ) -> None:
        """A call ended in an error: `cause`, which was `raised` by gRPC. Raises it unless another
        shard may do better.

        A shard that was not reached, or that says it drains, was not lost under the request.
        """
        self.left_s()
        if isinstance(cause, ResourceExhausted):
            if started:  # a resumed answer waits for room
                self._avoid_for_a_moment(replica, cause)
            else:
                self._full.add(replica.id)
                self.cause = cause
                self.attempts += 1
            self._raise_when_out_of_patience(cause)
        elif _never_reached(raised) or cause.reason.upper() == "DRAINING":
            self._avoid_for_a_moment(replica, cause)
            self._raise_when_out_of_patience(cause)
        elif _is_loss(raised) or isinstance(cause, NotFound):
            if _died(raised, cause):
                self._dead(replica)
            self.lost(replica, cause)
        else:
            raise cause

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

    def _dead(self, replica: Replica) -> None:
        """A shard died under the request, which may be why."""
        if replica.id in self._deaths:
            return
        self._deaths.add(replica.id)
        if len(self._deaths) == MAX_DEATHS:
            metrics.POISON.inc()
            _log.error("request.poison", request=self._request_id, shards=sorted(self._deaths))
        self.check_deaths()

    def check_deaths(self) -> None:
        """Raises when so many shards died under the request that none may be asked any more."""
        if len(self._deaths) >= MAX_DEATHS:
            raise Internal(
                f"{len(self._deaths)} shards died while they answered this request, so no other "
                f"one is asked; an operator finds it as {self._request_id}",
                reason=SHARDS_DIED,
                metadata={"shards": ", ".join(sorted(self._deaths))},
            )

    def _avoid_for_a_moment(self, replica: Replica, cause: PlinthError) -> None:
        self._avoid[replica.id] = time.monotonic() + AVOID_S
        self.cause = cause
        self.attempts += 1

    def _raise_when_out_of_patience(self, cause: PlinthError) -> None:
        if time.monotonic() >= self._give_up:
            raise cause


def _never_reached(error: grpc.RpcError) -> bool:
    """Refused at connection: the request never met the shard."""
    details = (error.details() or "").lower()
    return error.code() is grpc.StatusCode.UNAVAILABLE and (
        "failed to connect" in details or "connection refused" in details
    )


def _is_loss(error: grpc.RpcError) -> bool:
    """The shard died, drains or cancelled: not the request's fault."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return True
    broken = ("RST_STREAM", "Stream removed", "Connection reset", "GOAWAY")
    return code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and any(
        word in details for word in broken
    )


def _died(error: grpc.RpcError, cause: PlinthError) -> bool:
    """Whether the shard ended without having meant to: its engine says so, or the connection broke
    with no word of it. One that drains says so, or lets its calls be cancelled."""
    if said(error) and cause.reason != cause.code:
        return cause.reason == "ENGINE_FAILED"
    words = error.details() or ""
    return (
        error.code() is not grpc.StatusCode.CANCELLED and "GOAWAY" not in words and not said(error)
    )
