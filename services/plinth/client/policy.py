"""When a call is tried again. Makes no calls, so that both clients decide alike."""

from __future__ import annotations

import math
import random
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from plinth.client.channels import GATEWAY_CLOSED, GATEWAY_TLS, GatewayAddress, told
from plinth.client.methods import Method
from plinth.client.progress import LostAnswer, progress_of
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.rpc.resuming import broken
from plinth.shared.rpc.status import said

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
# Of a gateway that has never answered: its address may be wrong.
_FIRST_CONTACT_S = 2.0
# Servers that took the request for an answer and were lost before anything new of it came: it may
# be the request that ends them.
_MOST_LOST = 3
# gRPC ends a call at once whose time is longer than it can count.
_LONGEST_CALL_S = 10.0**8
_HEADER = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")


@dataclass(frozen=True)
class Policy:
    """How patient a client is.

    timeout_s: for a whole call, its repetitions among it, where the call says nothing; None: 60 s,
      of generation 600 s, of streams as long as they take.
    patience_s: how long a call that may be repeated is, while the platform can't answer it.
    stream_patience_s: how long a stream that has begun waits for somebody to go on with it.
    quiet_s: a watch that says nothing for so long, no heartbeat either, is taken for broken.
    """

    timeout_s: float | None = None
    patience_s: float = 15.0
    stream_patience_s: float = 150.0
    quiet_s: float = 60.0
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a secret


class Gateway:
    """What a client knows of the gateway that it calls."""

    def __init__(self, address: GatewayAddress, key: str, policy: Policy) -> None:
        self.address, self.policy = address, policy
        self.reached = False  # whether it has ever answered
        self._metadata = headers(policy.metadata)
        if key:
            self._metadata["authorization"] = f"Bearer {key}"

    def metadata(self, further: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
        """Of one call; what it brings along takes the place of the client's of the same name.
        InvalidArgument for what can be no metadata."""
        return tuple({**self._metadata, **headers(further or {})}.items())

    def told(self, raised: grpc.RpcError) -> PlinthError:
        """The error of a call."""
        self.reached = self.reached or said(raised)
        return told(raised, self.address)


def headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """As they are sent. InvalidArgument names the one that can't be, and never its value."""
    sent: dict[str, str] = {}
    for name, value in metadata.items():
        key = name.lower()
        if not _HEADER.fullmatch(key) or key.startswith("grpc-") or key.endswith("-bin"):
            raise InvalidArgument(
                f"metadata: {name[:64]!r} is no name of metadata: letters, digits, '_', '.' and "
                "'-', neither grpc-… nor …-bin",
                field="metadata",
            )
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidArgument(
                f"metadata: the value of {key} is not printable ASCII on one line",
                field=f"metadata.{key}",
            )
        sent[key] = value
    return sent


def seconds_of(timeout: float | None) -> float | None:
    """What gRPC is told; None: no end. InvalidArgument for what is no number."""
    if timeout is None or timeout >= _LONGEST_CALL_S:
        return None
    if math.isnan(timeout):
        raise InvalidArgument("timeout: it is a number of seconds, not NaN", field="timeout")
    return timeout


def closed() -> FailedPrecondition:
    """What a call on a client that was closed ends with."""
    return FailedPrecondition("this client is closed; make another one", reason="CLIENT_CLOSED")


def gone_quiet(address: GatewayAddress) -> Unavailable:
    """What a watch that says nothing any more has come to."""
    return Unavailable(f"{address}: the stream has gone quiet", reason="STREAM_QUIET")


class Attempts:
    """The attempts at one call, and what of a stream came by them."""

    def __init__(
        self, gateway: Gateway, method: Method, request: Any, timeout: float | None
    ) -> None:
        """timeout: seconds for the whole call; None: the policy's."""
        policy = gateway.policy
        given = timeout if timeout is not None else policy.timeout_s
        seconds = given if given is not None else method.timeout_s
        self._until = None if (left := seconds_of(seconds)) is None else time.monotonic() + left
        self._gateway, self._policy, self._method = gateway, policy, method
        self._broken_since: float | None = None
        self._wait_s = _FIRST_WAIT_S
        self._begun = False
        if method.takes_request_id and not request.request_id:
            request.request_id = str(uuid.uuid4())
        self._progress = progress_of(method, request)
        self._lost: PlinthError | None = None
        self._taken, self._losses = False, 0

    @property
    def request(self) -> Any:
        """What to ask for."""
        return self._progress.request

    @property
    def left_s(self) -> float | None:
        """Seconds until the call must have ended; None: no end."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def answered(self) -> None:
        """Somebody has taken the request."""
        self._begun = self._taken = self._gateway.reached = True
        if not self._progress.restarts:
            self._mended()

    def took(self, message: Any) -> bool:
        """Notes where a stream is. Whether the message is one for the caller."""
        self.answered()
        try:
            told = self._progress.took(message)
        except LostAnswer as lost:
            raise Unavailable(
                f"the answer broke off and can't go on: {lost}. Ask anew", reason="ANSWER_LOST"
            ) from self._lost
        if told:
            self._mended()
        return told

    def _mended(self) -> None:
        self._broken_since, self._wait_s, self._losses = None, _FIRST_WAIT_S, 0

    def next_wait_s(self, error: PlinthError) -> float | None:
        """Seconds until the next attempt; None when `error` is the answer."""
        hopeless = GATEWAY_TLS, *(() if self._gateway.reached else (GATEWAY_CLOSED,))
        if error.reason in hopeless or not self._may_repeat(error):
            return None
        self._progress.broke()
        self._lost = error
        self._losses += self._taken
        self._taken = False
        if self._progress.restarts and self._losses > _MOST_LOST:
            return None
        now = time.monotonic()
        self._broken_since = now if self._broken_since is None else self._broken_since
        resumes = self._begun and self._progress.resumes
        patience = self._policy.stream_patience_s if resumes else self._policy.patience_s
        if not self._gateway.reached:
            patience = min(patience, _FIRST_CONTACT_S)
        step, self._wait_s = self._wait_s, min(2 * self._wait_s, _LONGEST_WAIT_S)
        wait = max(step * random.uniform(0.8, 1.2), error.retry_after_s or 0.0)
        ends = self._broken_since + patience
        if now + wait > (ends if self._until is None else min(ends, self._until)):
            return None
        return wait

    def _may_repeat(self, error: PlinthError) -> bool:
        if self._progress.resumes:
            return broken(error)
        if not self._method.repeatable or (
            self._begun and self._method.descriptor.server_streaming
        ):
            # Refused before anything was done.
            return isinstance(error, ResourceExhausted) and self._is_early(error)
        if isinstance(error, ResourceExhausted):
            return error.retry_after_s is not None
        return isinstance(error, Unavailable)

    def _is_early(self, error: PlinthError) -> bool:
        return not self._begun and said(error) and error.retry_after_s is not None
