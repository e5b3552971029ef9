"""A canary in Redis: which share of a served name's requests its second revision gets, and what
came of them.

One hash per served name, changed by scripts only (`canary_scripts.py`). The coordinator opens it
and renews it while its step lives; a route that is not renewed lapses, and all requests go to the
stable revision again. Gateways ask it per request and report each answer. The share is kept by a
counter, not by chance: after n requests the canary has had at most share · n of them and at most
one less, over all gateways together, at every moment.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from plinth.shared import canary_scripts as scripts
from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound

SUFFIX = ".canary"  # deployment of the canary of "chat": "chat.canary"
MAX_SHARE = 0.5
ROLES = ("stable", "canary")
ROUTE_S = 30.0  # a route that is not renewed for so long lapses
KEPT_S = 7 * 86_400.0  # counters after the last change
ANSWER_S = 3600.0  # how long an answer can be judged,
MAX_ANSWERS = 100_000  # of so many that came last, so that traffic can't fill Redis
_ONCE_S = 60  # for commands that a broken connection sends twice
# Sticky users may carry the canary this far above its share, of at least 50 requests.
_SLACK = 0.02

_FIRST_BUCKET_S, _GROWTH, _BUCKETS = 0.001, 1.05, 320  # up to about 6,000 s, within 5 %


@dataclass(frozen=True)
class Tally:
    """What came of one revision's requests. requests: answered or failed; cancelled ones, whose
    clients hung up, are none of them. ttft: bucket → answers."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    tokens: int = 0
    good: int = 0
    bad: int = 0
    ttft: Mapping[int, int] = field(default_factory=dict)

    def ttft_quantile_s(self, share: float) -> float | None:
        """Time to first token in seconds that `share` of the answers kept to, rounded up by at
        most 5 %; None without any answer."""
        total, seen = sum(self.ttft.values()), 0
        for bucket in sorted(self.ttft):
            seen += self.ttft[bucket]
            if total and seen >= share * total:
                return _FIRST_BUCKET_S * _GROWTH**bucket
        return None


@dataclass(frozen=True)
class CanaryState:
    """One look at a canary. age_s: since it was opened. evidence: what the step that watches it
    has kept (`note`), read together with the tallies."""

    id: str
    state: str
    age_s: float
    asked: int
    given: int
    tallies: Mapping[str, Tally]
    evidence: str = ""


class Canaries:
    """The canaries of this installation. Raises Unavailable while Redis is gone."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._open = redis.register_script(scripts.OPEN)
        self._move = redis.register_script(scripts.MOVE)
        self._note = redis.register_script(scripts.NOTE)
        self._choose = redis.register_script(scripts.CHOOSE)
        self._settle = redis.register_script(scripts.SETTLE)
        self._report = redis.register_script(scripts.REPORT)
        self._report_revision = redis.register_script(scripts.REPORT_REVISION)

    async def open(
        self,
        name: str,
        id: str,
        *,
        stable: str,
        canary: str,
        share: float,
        sticky: bool = False,
    ) -> str:
        """Opens the route, or renews it for ROUTE_S; its state. FailedPrecondition while `name`
        has a canary of somebody else."""
        with redis_errors():
            state, detail = await self._open(
                keys=[redis_keys.canary(name)],
                args=[
                    id,
                    stable,
                    canary,
                    repr(share),
                    int(ROUTE_S * 1000),
                    int(KEPT_S * 1000),
                    "1" if sticky else "0",
                ],
            )
        if state == b"taken":
            raise FailedPrecondition(
                f"{name!r} has a canary already (of {detail.decode()}); wait for its end, or "
                "cancel that run",
                reason="CANARY_TAKEN",
                field="name",
            )
        return str(state.decode())

    async def promote(self, name: str, id: str) -> None:
        """Sends all new requests to the canary."""
        await self._moved(name, id, "promoted")

    async def close(self, name: str, id: str) -> None:
        """Sends it no more requests, for good. What is counted stays. Idempotent."""
        await self._moved(name, id, "closed")

    async def note(self, name: str, id: str, evidence: str) -> None:
        """Keeps what the step that watches it concludes so far, while the canary is open."""
        with redis_errors():
            await self._note(keys=[redis_keys.canary(name)], args=[id, evidence])

    async def state(self, name: str) -> CanaryState | None:
        """None: `name` has had no canary for a long time."""
        with redis_errors():
            raw: Any = await self._redis.hgetall(redis_keys.canary(name))
            seconds, micros = await self._redis.time()
        if not raw:
            return None
        return _parse({k.decode(): v.decode() for k, v in raw.items()}, seconds + micros / 1e6)

    async def choose(
        self, name: str, artifact: str, user: str = "", answer: str = ""
    ) -> tuple[str, str] | None:
        """(id, role) of one request; None where no canary of that artifact is open.

        user: who asks. Where the canary is sticky the same user gets the same revision: users are
        drawn by hash, and the canary still never has more than 2 points above its share. answer:
        see `answer_key`; what it can be judged by.
        """
        with redis_errors():
            chosen: Any = await self._choose(
                keys=[
                    redis_keys.canary(name),
                    redis_keys.canary(name, f"choice-{uuid.uuid4().hex}"),
                    *_answers(name),
                ],
                args=[
                    artifact,
                    repr(_point(name, user)) if user else "",
                    _SLACK,
                    _ONCE_S,
                    answer,
                    int(ANSWER_S * 1000),
                    MAX_ANSWERS,
                ],
            )
        return (chosen[0].decode(), chosen[1].decode()) if chosen else None

    async def settle(
        self,
        name: str,
        id: str,
        role: str,
        *,
        outcome: str,
        tokens: int,
        ttft_s: float | None,
        answer: str,
        once: str = "",
    ) -> None:
        """Books one request. outcome: "ok", "error" or "cancelled". answer: see `answer_key`.
        once: names this call for a minute, in which it may be made again without counting twice."""
        bucket = "" if ttft_s is None else bucket_of(ttft_s)
        with redis_errors():
            await self._settle(
                keys=[
                    redis_keys.canary(name),
                    redis_keys.canary(name, f"once-{once or uuid.uuid4().hex}"),
                    *_answers(name),
                ],
                args=[
                    id,
                    role,
                    outcome,
                    tokens,
                    bucket,
                    _ONCE_S,
                    answer,
                    int(ANSWER_S * 1000),
                    MAX_ANSWERS,
                ],
            )

    async def report(self, name: str, *, answer: str, good: bool) -> str:
        """Counts a verdict on one answer, once; the role that made it. NotFound,
        FailedPrecondition when its canary is over."""
        with redis_errors():
            role = await self._report(
                keys=[redis_keys.canary(name), *_answers(name)],
                args=["good" if good else "bad", answer, int(ANSWER_S * 1000)],
            )
        return _role(name, role.decode(), "answer of yours with that request_id", "request_id")

    async def report_revision(self, name: str, revision: str, *, good: bool) -> str:
        """Counts a verdict on a revision ("chat@8"); errors as in `report`."""
        with redis_errors():
            role = await self._report_revision(
                keys=[redis_keys.canary(name), redis_keys.canary(name, f"once-{uuid.uuid4().hex}")],
                args=["good" if good else "bad", revision, _ONCE_S],
            )
        return _role(name, role.decode(), f"revision {revision!r}", "revision")

    async def _moved(self, name: str, id: str, state: str) -> None:
        with redis_errors():
            await self._move(keys=[redis_keys.canary(name)], args=[id, state])


def bucket_of(seconds: float) -> int:
    """Bucket of a time: times up to 1 ms in the first one, then 5 % wide each."""
    if seconds <= _FIRST_BUCKET_S:
        return 0
    return min(_BUCKETS, math.ceil(math.log(seconds / _FIRST_BUCKET_S, _GROWTH) - 1e-9))


def answer_key(tenant: str, request_id: str) -> str:
    """Names an answer without trusting what a client calls it; a tenant judges its own only."""
    return hashlib.sha256(f"{tenant}\0{request_id}".encode()).hexdigest()


def canary_name(name: str) -> str:
    """The deployment that serves the canary of `name`. InvalidArgument for a canary's name."""
    if name.endswith(SUFFIX):
        raise InvalidArgument(f"{name!r} is a canary's name; name what it is a canary of")
    return f"{name}{SUFFIX}"


def _answers(name: str) -> list[str]:
    """The answers that can be judged, and when they came."""
    return [redis_keys.canary(name, "answers"), redis_keys.canary(name, "answers-by-time")]


def _point(name: str, user: str) -> float:
    digest = hashlib.sha256(f"{name}\0{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _role(name: str, role: str, what: str, where: str) -> str:
    if role == "unknown":
        raise NotFound(
            f"{name!r} has no {what} while its canary is on, or none of the last hour",
            reason="ANSWER_NOT_FOUND",
            field=where,
        )
    if role == "over":
        raise FailedPrecondition(
            f"{name!r} has no canary now: verdicts count while one is on", reason="NO_CANARY"
        )
    return role


def _parse(fields: Mapping[str, str], now_s: float) -> CanaryState:
    counts: dict[str, dict[str, Any]] = {role: {"ttft": {}} for role in ROLES}
    for key, value in fields.items():
        role, dot, what = key.partition(".")
        if not dot:
            continue
        if what.startswith("ttft."):
            counts[role]["ttft"][int(what[5:])] = int(value)
        else:
            counts[role][what] = int(value)
    return CanaryState(
        id=fields["id"],
        state=fields["state"],
        age_s=max(0.0, now_s - int(fields["opened"]) / 1000),
        asked=int(fields.get("asked", 0)),
        given=int(fields.get("given", 0)),
        tallies={role: Tally(**counts[role]) for role in ROLES},
        evidence=fields.get("evidence", ""),
    )
